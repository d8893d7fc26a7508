"""Plain calls: a stream that is read, closed, dropped or fails."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from client.api import Stream
from client.async_client import Client
from client.network import Links
from client.request import LocalModel, Options, Question
from client.text.tokenizer import ByteTokenizer
from swarm.errors import LocalProtocolError, NoRoute, PromptTooLong
from swarm.invites import Invite
from swarm.wire.messages import Cancel
from tests.client.scripted import LAYERS, SPEC, ScriptedStage, ScriptedSwarm, continuation

INVITE = Invite(("/ip4/127.0.0.1/tcp/1",), "scripted", "scripted")
Ask = Callable[..., Stream]


@pytest.fixture
def stages() -> list[ScriptedStage]:
    return []


@pytest.fixture
def ask(stages: list[ScriptedStage]) -> Ask:
    """A stream from a scripted swarm that lives in the stream's own event loop."""

    @asynccontextmanager
    async def connect(invite: Invite) -> AsyncIterator[Links]:
        swarm = ScriptedSwarm()
        stages.append(await swarm.stage("only", 0, LAYERS))
        async with swarm.connect(invite) as links:
            yield links
            await asyncio.sleep(0.02)  # what was sent arrives

    def stream(prompt: str, timeout_seconds: float = 5.0, **options: int) -> Stream:
        client = Client(INVITE, model=LocalModel(SPEC, ByteTokenizer(), ()), connect=connect)
        named = Options(max_tokens=options.get("max_tokens", 6))
        return Stream(client, Question(prompt, None, timeout_seconds, named))

    return stream


def test_a_stream_is_an_iterator_of_pieces(ask: Ask) -> None:
    stream = ask("hello")
    first = next(stream)
    pieces = [first, *stream]
    expected = bytes(continuation(b"hello", 6)).decode()
    assert "".join(pieces) == expected == str(stream.generation)
    with pytest.raises(StopIteration):
        next(stream)


def test_the_whole_is_not_there_before_the_end(ask: Ask) -> None:
    stream = ask("hello")
    next(stream)
    with pytest.raises(LocalProtocolError, match="not complete"):
        _ = stream.generation
    stream.close()


@pytest.mark.parametrize("way", ["close", "drop"])
def test_a_stream_that_is_left_frees_its_stages(
    ask: Ask, stages: list[ScriptedStage], way: str
) -> None:
    stream = ask("hello", max_tokens=2000)
    next(stream)
    if way == "close":
        stream.close()
    del stream
    gc.collect()
    assert any(isinstance(message, Cancel) for message in stages[0].heard)


def test_errors_come_out_of_the_iteration(ask: Ask, stages: list[ScriptedStage]) -> None:
    with pytest.raises(PromptTooLong):
        list(ask("x" * 5000))
    assert not stages, "bad input is refused before anything is connected"


def test_a_swarm_without_all_layers_is_an_error_in_time(ask: Ask) -> None:
    stream = ask("hello", timeout_seconds=0.2)
    original = ScriptedSwarm.stage

    async def short_stage(self: ScriptedSwarm, name: str, start: int, end: int) -> ScriptedStage:
        return await original(self, name, start, end - 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedSwarm, "stage", short_stage)
        with pytest.raises(NoRoute, match="layers 5 of 6"):
            list(stream)
