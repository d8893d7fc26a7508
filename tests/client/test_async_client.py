"""Clients: many requests over one connection, abandoned answers, failures of one alone."""

import asyncio
from collections.abc import Callable

import pytest

from client.api import answer
from client.async_client import Client
from client.request import LocalModel, Question
from client.text.tokenizer import ByteTokenizer
from client.token_stream import TokenStream
from swarm.errors import BadModel, LocalProtocolError, NoRoute
from swarm.invites import Invite
from swarm.records import Advert, Member, StageAdvert
from swarm.wire.messages import Cancel, Message, Open, Step
from tests.client.conftest import Story
from tests.client.scripted import LAYERS, SPEC, ScriptedStage, ScriptedSwarm, continuation, until

INVITE = Invite((), "scripted", "scripted")
Run = Callable[[Story], None]


async def serve(swarm: ScriptedSwarm) -> tuple[ScriptedStage, ScriptedStage]:
    return await swarm.stage("first", 0, 4), await swarm.stage("last", 4, LAYERS)


def text_of(prompt: str, count: int) -> str:
    return bytes(continuation(prompt.encode(), count)).decode()


def test_a_generation_prints_as_its_text_and_tells_all(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await serve(swarm)
        async with swarm.client() as client:
            generation = await client.generate("hello", max_tokens=6)
        assert str(generation) == text_of("hello", 6)
        assert list(generation.token_ids) == continuation(b"hello", 6)
        assert generation.finish_reason == "length"
        assert generation.prompt_tokens == generation.to_json()["prompt_tokens"] == len("hello")
        assert 0 < generation.ttft_seconds < 2
        assert generation.tokens_per_second > 0
        values = generation.to_json()
        assert [(s["start"], s["end"]) for s in values["route"]] == [(0, 4), (4, 6)]
        shard = {"peer": last.peer, "device": 0, "kv": 2, "mlp": 1}
        assert values["route"][1]["shards"] == [shard]
        assert [t["compute_seconds"] for t in values["timings"]] == [0.012, 0.012]
        await until(lambda: not first.opened)

    in_swarm(story)


def test_many_requests_share_a_connection_and_do_not_mix(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await serve(swarm)
        prompts = [f"prompt {number}" for number in range(8)]
        async with swarm.client() as client:
            asked = (client.generate(text, max_tokens=3 + n) for n, text in enumerate(prompts))
            generations = await asyncio.gather(*asked)
        for number, (prompt, generation) in enumerate(zip(prompts, generations, strict=True)):
            assert generation.text == text_of(prompt, 3 + number)

    in_swarm(story)


def test_pieces_come_one_by_one_and_the_whole_afterwards(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await serve(swarm)
        async with swarm.client() as client:
            pieces = client.stream("hello", max_tokens=5)
            with pytest.raises(LocalProtocolError):
                _ = pieces.generation
            shown = [piece async for piece in pieces]
            assert len(shown) == 5
            assert "".join(shown) == pieces.generation.text == text_of("hello", 5)

    in_swarm(story)


def test_a_stop_string_ends_the_text_before_it_and_the_ids_with_it(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, _ = await serve(swarm)
        whole = text_of("hello", 20)
        stop = whole[7:9]
        async with swarm.client() as client:
            pieces = client.stream("hello", max_tokens=20, stop=[stop])
            shown = "".join([piece async for piece in pieces])
        assert shown == whole.split(stop)[0]
        generation = pieces.generation
        assert generation.finish_reason == "stop"
        assert len(generation.token_ids) == len(shown) + len(stop)
        await until(lambda: not first.opened)

    in_swarm(story)


def test_stop_strings_stay_with_the_client_who_reads_the_text(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await serve(swarm)
        async with swarm.client() as client:
            await client.generate("hello", max_tokens=3, stop=["secret"])
        for stage in (first, last):
            opens = [message for message in stage.heard if isinstance(message, Open)]
            assert all("stop" not in message.sampling for message in opens)

    in_swarm(story)


def test_the_id_that_ends_an_answer_is_no_part_of_its_text(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await serve(swarm)
        ids = continuation(b"hello", 20)
        local = LocalModel(SPEC, ByteTokenizer(), (ids[7],))
        async with Client(INVITE, model=local, connect=swarm.connect) as client:
            generation = await client.generate("hello", max_tokens=20)
        end = ids.index(ids[7])
        assert list(generation.token_ids) == ids[: end + 1]
        assert generation.text == bytes(ids[:end]).decode()
        assert generation.finish_reason == "stop"

    in_swarm(story)


def hold_at(position: int) -> Callable[[ScriptedStage, str, Message], bool]:
    def hold(stage: ScriptedStage, peer: str, message: Message) -> bool:
        return isinstance(message, Step) and message.position >= position

    return hold


@pytest.mark.parametrize("way", ["close", "drop", "cancel", "leave"])
def test_an_abandoned_answer_frees_its_stages(in_swarm: Run, way: str) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await serve(swarm)
        last.hook = hold_at(8)
        async with swarm.client() as client:
            pieces = client.stream("hello", max_tokens=50)
            await anext(pieces)
            if way == "close":
                await pieces.aclose()
            elif way == "cancel":
                await abandon_by_cancelling(pieces)
            elif way == "leave":
                pass
            del pieces
            if way != "leave":
                await until(lambda: any(isinstance(m, Cancel) for m in first.heard))
        await until(lambda: any(isinstance(m, Cancel) for m in first.heard))
        await until(lambda: any(isinstance(m, Cancel) for m in last.heard))

    async def abandon_by_cancelling(pieces: TokenStream) -> None:
        async def read() -> None:
            async for _ in pieces:
                pass

        reading = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    in_swarm(story)


def test_the_failure_of_one_request_leaves_the_others_alone(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, _ = await serve(swarm)
        poison = b"poison"

        def reject(stage: ScriptedStage, peer: str, message: Message) -> bool:
            return isinstance(message, Step) and bytes(message.body[::4]).startswith(poison)

        first.hook = reject
        async with swarm.client() as client:
            good = client.generate("hello", max_tokens=5)
            bad = client.generate("poison", timeout_seconds=0.3)
            results = await asyncio.gather(good, bad, return_exceptions=True)
        assert str(results[0]) == text_of("hello", 5)
        assert isinstance(results[1], Exception)
        assert "did not answer" in str(results[1])

    in_swarm(story)


def test_errors_reach_the_asker_as_they_are(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("first", 0, 4)
        with pytest.raises(NoRoute):
            async with swarm.client() as client:
                await client.generate("hello", timeout_seconds=0.1)

    in_swarm(story)


def test_other_files_under_the_same_name_are_refused(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        stage = await swarm.stage("other", 0, LAYERS)
        member = [Member(stage.peer, 0, 2, 1)]
        advert = Advert("e" * 64, [StageAdvert(0, LAYERS, member, 0.1, 100, 0)], 1)
        await stage.board.publish(advert)
        async with swarm.client() as client:
            with pytest.raises(BadModel, match="other files"):
                await client.generate("hello")

    in_swarm(story)


def test_a_client_must_be_open_to_be_asked(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        with pytest.raises(LocalProtocolError, match="async with"):
            swarm.client().stream("hello")

    in_swarm(story)


def test_one_question_may_be_shown_as_it_is_answered(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await serve(swarm)
        shown: list[str] = []
        question = Question("hello", None, 5.0, {"max_tokens": 4})
        generation = await answer(swarm.client(), question, shown.append)
        assert "".join(shown) == generation.text == text_of("hello", 4)

    in_swarm(story)
