"""Several answers to one prompt: its rows are computed once, and nobody waits in vain."""

import asyncio
from collections.abc import Callable

import pytest

from client.api import answer
from client.request import Question
from client.token_stream import TokenStream
from swarm.errors import BadInput, PeerRefused
from swarm.wire.messages import Fail, Message, Open
from tests.client.conftest import Story
from tests.client.scripted import LAYERS, ScriptedStage, ScriptedSwarm, continuation, until

Run = Callable[[Story], None]
WHOLE = bytes(continuation(b"hello", 4)).decode()


async def serve(swarm: ScriptedSwarm) -> tuple[ScriptedStage, ScriptedStage]:
    return await swarm.stage("first", 0, 4), await swarm.stage("last", 4, LAYERS)


def opens_of(stage: ScriptedStage) -> list[Open]:
    return [message for message in stage.heard if isinstance(message, Open)]


def test_n_answers_come_as_one(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        _, last = await serve(swarm)
        async with swarm.client() as client:
            found = await client.generate("hello", n=3, max_tokens=4, temperature=1.0, seed=5)
        assert [each.text for each in found.choices] == [WHOLE] * 3
        assert [each.sampling["seed"] for each in opens_of(last)] == [5, 6, 7]
        assert found.choices[0] is found
        assert [each["text"] for each in found.to_json()["others"]] == [WHOLE] * 2
        await until(lambda: not last.opened)

    in_swarm(story)


def test_equal_prompts_wait_for_the_first_ones_first_token_and_others_do_not(
    in_swarm: Run,
) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await serve(swarm)
        held: list[Message] = []

        def hold(stage: ScriptedStage, peer: str, message: Message) -> bool:
            if isinstance(message, Open):
                held.append(message)
            return isinstance(message, Open)

        last.hook = hold
        async with swarm.client() as client:
            one = await client.request(Question("hello", None, 5.0, {"max_tokens": 4}))
            other = await client.request(Question("other", None, 5.0, {"max_tokens": 4}))
            streams = client.ask_together([one, one, other])
            await until(lambda: len(opens_of(first)) == 2)
            prompts = {bytes(each.body[::4]) for each in opens_of(first)}
            assert prompts == {b"hello", b"other"}
            last.hook = lambda stage, peer, message: False
            for message in held:
                last.on_message(swarm.channel.peer, message)
            assert [(await each.finish()).text for each in streams[:2]] == [WHOLE] * 2
            await streams[2].finish()

    in_swarm(story)


@pytest.mark.parametrize("when", ["at once", "later"])
def test_the_others_go_on_when_the_first_is_closed(in_swarm: Run, when: str) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, _ = await serve(swarm)
        if when == "later":
            first.hook = lambda stage, peer, message: isinstance(message, Open)
        async with swarm.client() as client:
            request = await client.request(Question("hello", None, 5.0, {"max_tokens": 4}))
            leading, other = client.ask_together([request] * 2)
            if when == "later":
                await until(lambda: bool(opens_of(first)))
            await leading.aclose()
            first.hook = lambda stage, peer, message: False
            assert (await other.finish()).text == WHOLE

    in_swarm(story)


def test_one_that_is_closed_while_it_waits_ends_for_its_reader(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, _ = await serve(swarm)
        first.hook = lambda stage, peer, message: isinstance(message, Open)
        async with swarm.client() as client:
            request = await client.request(Question("hello", None, 5.0, {"max_tokens": 4}))
            _, waiting = client.ask_together([request] * 2)
            reading = asyncio.create_task(read(waiting))
            await until(lambda: bool(opens_of(first)))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

    in_swarm(story)


async def read(stream: TokenStream) -> None:
    async for _ in stream:
        pass


def test_one_that_fails_ends_all(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await serve(swarm)

        def refuse(stage: ScriptedStage, peer: str, message: Message) -> bool:
            is_second = isinstance(message, Open) and message.sampling.get("seed") == 6
            if is_second and isinstance(message, Open):
                failure = Fail(message.session, message.epoch, "bad_frame", "nonsense")
                stage.spawn(stage.channel.send(peer, failure))
            return is_second

        last.hook = refuse
        async with swarm.client() as client:
            with pytest.raises(PeerRefused):
                await client.generate("hello", n=3, max_tokens=4, temperature=1.0, seed=5)
            await until(lambda: not first.opened)

    in_swarm(story)


def test_a_stream_is_one_answer(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await serve(swarm)
        async with swarm.client() as client:
            with pytest.raises(BadInput, match="a stream is one answer"):
                client.stream("hello", n=2)
        found = await answer(
            swarm.client(), Question("hello", None, 5.0, {"n": 2, "max_tokens": 4})
        )
        assert [each.text for each in found.choices] == [WHOLE] * 2
        with pytest.raises(BadInput, match="a stream is one answer"):
            await answer(swarm.client(), Question("hello", None, 5.0, {"n": 2}), print)

    in_swarm(story)
