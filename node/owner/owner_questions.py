"""OwnerQuestions: answers what the owner's programs ask the swarm, over the network of his node.

Such a program needs no network of its own: it sends the ids of a prompt and hears those of the
answer. A client in this process asks the stages for them, our own ones among others.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol

from node.owner.control_server import Words
from node.served_model import ServedModel
from node.serving.stage_server import StageServer
from swarm.dht.board import Board
from swarm.errors import Unreachable
from swarm.model_spec import ModelSpec
from swarm.p2p.channel import Channel

MOST = 8  # questions at a time; whoever asks more is to open a network of his own


class HostedClient(Protocol):
    """A client on this node's board and channel."""

    def generate(self, words: Words, enough: asyncio.Event) -> AsyncGenerator[dict[str, Any], None]:
        """New ids as they come, and at last what came of it; raises SwarmError.

        Ends early once `enough` is set, and frees every stage in every case.
        """


class MakeClient(Protocol):
    """Makes a client; `plan` is the document that the node follows now."""

    def __call__(
        self,
        board: Board,
        channel: Channel,
        spec: ModelSpec,
        stages: StageServer,
        plan: Callable[[], bytes],
    ) -> HostedClient: ...


LoadClient = Callable[[], MakeClient]  # imports it: in a thread


class OwnerQuestions:
    """Begins the client with the first question: most nodes are never asked one."""

    def __init__(
        self,
        swarm: str,
        served: ServedModel,
        load: LoadClient,
        host: Callable[[MakeClient], HostedClient],
    ) -> None:
        self._swarm, self._served = swarm, served
        self._load, self._host = load, host
        self._client: HostedClient | None = None
        self._loading = asyncio.Lock()
        self._asked = 0

    async def model(self, _words: Words) -> Words:
        """What an asker must know: the model's dimensions, and where its tokenizer is."""
        served = self._served
        folder = str(served.folder.resolve())
        return {"swarm": self._swarm, "spec": served.spec.to_json(), "folder": folder}

    async def generate(
        self, words: Words, enough: asyncio.Event
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Answer a question, or say at once that there are too many."""
        if self._asked >= MOST:
            raise Unreachable(f"The node answers {MOST} questions already.", "Try again later.")
        self._asked += 1
        try:
            client = await self._hosted_client()
            async with aclosing(client.generate(words, enough)) as answers:
                async for answer in answers:
                    yield answer
        finally:
            self._asked -= 1

    async def _hosted_client(self) -> HostedClient:
        async with self._loading:
            if self._client is None:
                self._client = self._host(await asyncio.to_thread(self._load))
            return self._client
