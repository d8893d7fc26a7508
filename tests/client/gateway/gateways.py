"""A gateway in front of a scripted swarm: in process, or on a socket of loopback."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from starlette.types import ASGIApp

from client.async_client import Client
from client.gateway.app import make_app
from client.gateway.http.settings import GatewaySettings
from client.gateway.server import listen, make_server
from client.request import LocalModel
from client.text.tokenizer import ByteTokenizer, Messages
from client.text.tool_prompt import Tools
from tests.client.scripted import LAYERS, SPEC, ScriptedStage, ScriptedSwarm, continuation
from tests.client.test_async_client import INVITE

Values = dict[str, Any]
SETTINGS = GatewaySettings(timeout_seconds=0.5, comment_seconds=0.02, patience_seconds=0.05)
DEADLINE_SECONDS = 10
STOP_ID = 257


class ChatBytes:
    """A model's tokenizer whose ids are bytes, with a chat template as plain as can be."""

    end_of_turn: tuple[int, ...] = ()

    def __init__(self, shown: str = "") -> None:
        self._shown = shown  # what the template seems to be
        self._bytes = ByteTokenizer()

    def ids_of_text(self, text: str) -> list[int]:
        """The bytes of a prompt."""
        return self._bytes.ids_of_text(text)

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of those ids that are bytes."""
        return self._bytes.text_of(ids)

    def template(self) -> str:
        """What formats are recognised by."""
        return self._shown

    def ids_of_messages(self, messages: Messages, tools: Tools = ()) -> list[int]:
        """Tools, then every turn, on lines of their own."""
        told = f"{json.dumps(tools)}\n" if tools else ""
        return list((told + chat_text(messages)).encode())


def chat_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """What the template makes of a chat."""
    return "".join(map(_turn_text, messages)) + "assistant: "


def _turn_text(turn: Mapping[str, Any]) -> str:
    more = {name: value for name, value in turn.items() if name not in ("role", "content")}
    return f"{turn['role']}: {turn['content']}{json.dumps(more) if more else ''}\n"


def answer_to(prompt: str, count: int) -> str:
    """What the scripted swarm says."""
    return bytes(continuation(prompt.encode(), count)).decode()


@dataclass
class Gateway:
    """The application, who asks it in process, and the stages behind it."""

    app: ASGIApp
    http: httpx2.AsyncClient
    client: Client
    stages: Sequence[ScriptedStage]

    async def post(self, path: str, body: Values, **more: Any) -> httpx2.Response:
        """Ask."""
        return await self.http.post(path, json=body, **more)

    async def events(self, path: str, body: Values) -> list[Values]:
        """All events of a stream, which must end as OpenAI's do."""
        answer = await self.post(path, {**body, "stream": True})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.text.split("\n\n") if line and not line.startswith(":")]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@asynccontextmanager
async def gateway(
    settings: GatewaySettings = SETTINGS, *, layers: int = LAYERS, says: str = "", shown: str = ""
) -> AsyncIterator[Gateway]:
    """A gateway whose swarm serves so many of the layers; `says` and ends, if that is given."""
    swarm = ScriptedSwarm()
    first = await swarm.stage("first", 0, 4)
    last = await swarm.stage("last", 4, LAYERS) if layers == LAYERS else first
    last.written = [*says.encode(), STOP_ID] if says else ()
    local = LocalModel(SPEC, ChatBytes(shown), (STOP_ID,))
    async with Client(INVITE, model=local, connect=swarm.connect) as client:
        app = make_app(client, settings)
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            yield Gateway(app, http, client, (first, last))


@asynccontextmanager
async def served(app: ASGIApp, **bounds: float) -> AsyncIterator[int]:
    """The port of loopback at which uvicorn serves an application."""
    sock = listen("127.0.0.1", 0)
    server = make_server(app, **bounds)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield sock.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task


def run(story: Callable[[], Awaitable[None]]) -> None:
    """Run a story to its end, within seconds."""

    async def whole() -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await story()

    asyncio.run(whole())


def with_gateway(
    story: Callable[[Gateway], Awaitable[None]], settings: GatewaySettings = SETTINGS, **facts: Any
) -> None:
    """Run a story with a gateway."""

    async def whole() -> None:
        async with gateway(settings, **facts) as made:
            await story(made)

    run(whole)
