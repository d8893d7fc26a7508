"""The server on a real socket: streams, clients that hang up, and those that dawdle."""

import asyncio
import json
import socket
from contextlib import suppress
from dataclasses import replace

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from client.gateway.server import FULL, FULL_HEAD, listen
from swarm.errors import BadInput
from swarm.wire.messages import Cancel, Message, Step
from tests.client.gateway.gateways import SETTINGS, answer_to, gateway, run, served
from tests.client.scripted import ScriptedStage, until

PATH = "/v1/chat/completions"
ASKED = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}


def hold_after_three(stage: ScriptedStage, peer: str, message: Message) -> bool:
    return isinstance(message, Step) and message.position > 24


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_hangs_up_ends_its_session_at_every_stage(is_streamed: bool) -> None:
    async def story() -> None:
        async with gateway(replace(SETTINGS, timeout_seconds=60.0)) as made:
            made.stages[1].hook = hold_after_three
            async with served(made.app) as port, httpx2.AsyncClient() as http:
                asking = asyncio.create_task(ask(http, port, is_streamed))
                await until(
                    lambda: any(hold_after_three(s, "", m) for s in made.stages for m in s.heard)
                )
                asking.cancel()
                await asyncio.wait([asking])
                while await running(http, port):
                    pass  # until the test's own deadline, which is long before the session's
                await until(lambda: all(map(is_cancelled, made.stages)))

    run(story)


async def running(http: httpx2.AsyncClient, port: int) -> int:
    """How many answers are under way."""
    health = (await http.get(f"http://127.0.0.1:{port}/health")).json()
    return int(health["generations"]["running"])


def is_cancelled(stage: ScriptedStage) -> bool:
    return any(isinstance(message, Cancel) for message in stage.heard)


async def ask(http: httpx2.AsyncClient, port: int, is_streamed: bool) -> None:
    body = {**ASKED, "stream": is_streamed}
    async with http.stream("POST", f"http://127.0.0.1:{port}{PATH}", json=body) as answer:
        async for _ in answer.aiter_bytes():
            pass


def test_pieces_are_sent_as_they_come_with_comments_while_nothing_comes() -> None:
    async def story() -> None:
        async with gateway(replace(SETTINGS, timeout_seconds=60.0)) as made:
            held: list[tuple[str, Message]] = []
            made.stages[1].hook = lambda stage, peer, message: keep(held, peer, message)
            async with served(made.app) as port, httpx2.AsyncClient() as http:
                body = {**ASKED, "max_tokens": 5, "stream": True}
                lines = []
                url = f"http://127.0.0.1:{port}{PATH}"
                async with http.stream("POST", url, json=body) as answer:
                    assert answer.headers["x-swarm-nodes"] == "2"
                    async for line in answer.aiter_lines():
                        lines.append(line)
                        if line.startswith(": waiting for the next token") and held:
                            made.stages[1].hook = lambda stage, peer, message: False
                            made.stages[1].on_message(*held.pop())
                assert ": waiting for the next token" in lines
                assert lines[-2] == "data: [DONE]"
                texts = [
                    json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                    for line in lines
                    if line.startswith("data: {")
                ]
                assert len("".join(texts)) == 5

    run(story)


def keep(held: list[tuple[str, Message]], peer: str, message: Message) -> bool:
    is_third = isinstance(message, Step) and message.position > 24
    if is_third:
        held.append((peer, message))
    return is_third


def test_many_streams_at_once_do_not_mix_and_leave_nothing_behind() -> None:
    async def asked(http: httpx2.AsyncClient, url: str, number: int) -> str:
        body = {"prompt": f"prompt {number}", "max_tokens": 4, "stream": True}
        answer = await http.post(url, json=body)
        lines = [line for line in answer.text.split("\n\n") if line.startswith("data: {")]
        return "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines)

    async def story() -> None:
        async with gateway(replace(SETTINGS, most_running=8, timeout_seconds=60.0)) as made:
            async with served(made.app) as port, httpx2.AsyncClient(timeout=60) as http:
                url = f"http://127.0.0.1:{port}/v1/completions"
                texts = await asyncio.gather(*(asked(http, url, number) for number in range(64)))
                assert texts == [answer_to(f"prompt {number}", 4) for number in range(64)]
                assert await running(http, port) == 0
            await until(lambda: not any(stage.opened for stage in made.stages))

    run(story)


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nhost: localh"])
def test_a_head_that_does_not_come_in_time_ends_the_connection(sent: bytes) -> None:
    async def story() -> None:
        async with gateway() as made, served(made.app, head_seconds=0.05) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()

    run(story)


def test_a_second_head_has_its_own_deadline() -> None:
    request = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"

    async def story() -> None:
        async with gateway() as made, served(made.app, head_seconds=0.1) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                writer.write(request)
                assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
                await reader.readuntil(b'"models":[]}')
            writer.write(request[:10])
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readuntil(b"\r\n\r\n")
            writer.close()

    run(story)


def test_who_reads_nothing_of_a_long_answer_is_left() -> None:
    left = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        watching = asyncio.ensure_future(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not watching.done():
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        assert watching.result()["type"] == "http.disconnect"
        left.set()

    async def story() -> None:
        async with served(endless, slow_seconds=0.05) as port:
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
                await left.wait()

    run(story)


def test_a_server_that_is_full_says_so_in_a_whole_response() -> None:
    head, _, body = (FULL_HEAD + FULL).partition(b"\r\n\r\n")
    assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
    assert f"content-length: {len(body)}".encode() in head


def test_a_port_that_is_taken_is_named() -> None:
    with listen("127.0.0.1", 0) as sock, pytest.raises(BadInput, match="cannot listen on"):
        listen("127.0.0.1", sock.getsockname()[1])
