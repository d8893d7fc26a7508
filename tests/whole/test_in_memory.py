"""Real clients, servers and shards on channels in memory: exact tokens through every fault."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import Client, Generation, NoRoute
from node.engine.kv_cache import block_manager
from node.engine.kv_cache.block_pool import BLOCK_TOKENS
from node.worker.messages import Broken
from swarm.testing.clock import settle
from swarm.testing.memory_network import peer_named
from tests.node.worker.shards import lone_shard
from tests.whole.hostile import bad_messages
from tests.whole.memory_swarm import CLIENT, MemorySwarm
from tests.whole.reference_model import expected

PROMPT = "Once upon a time"
TOKENS = 40
FEW = 16
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_k": 40, "seed": 7}
Story = Callable[[MemorySwarm, Client], Awaitable[None]]


def run(story: Story) -> None:
    """Two stages twice over, so that everything has a replica; and a client."""

    async def whole() -> None:
        swarm = MemorySwarm()
        for name in ("a", "b"):
            await swarm.add(f"{name} first", 0, 3)
            await swarm.add(f"{name} last", 3, 8)
        async with asyncio.timeout(30), Client(swarm.invite, connect=swarm.connect) as asking:
            await story(swarm, asking)
        await settle()
        assert {
            name: stage.server.sessions for name, stage in swarm.stages.items()
        } == dict.fromkeys(swarm.stages, 0)
        await swarm.close()

    asyncio.run(whole())


@cache
def reference(*, sampled: bool) -> list[int]:
    return expected(PROMPT, TOKENS, **(SAMPLED if sampled else {}))


async def generate_with(
    asking: Client, at_tokens: int, act: Callable[[], Awaitable[None]], *, sampled: bool = False
) -> Generation:
    """Generate, and do something in the middle of it."""
    options = SAMPLED if sampled else {}
    async with asking.stream(PROMPT, max_tokens=TOKENS, **options) as pieces:
        count = 0
        async for _ in pieces:
            count += 1
            if count == at_tokens:
                await act()
        return pieces.generation


async def nothing() -> None:
    """No fault at all."""


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_tokens_are_those_of_the_whole_model(sampled: bool) -> None:
    async def story(_swarm: MemorySwarm, asking: Client) -> None:
        generation = await generate_with(asking, 0, nothing, sampled=sampled)
        assert list(generation.token_ids) == reference(sampled=sampled)
        assert generation.replays == 0

    run(story)


def test_the_client_relays_between_stages_that_cannot_reach_each_other() -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        for first in ("a first", "b first"):
            for last in ("a last", "b last"):
                swarm.world.cut(swarm.stages[first].peer, swarm.stages[last].peer)
        generation = await generate_with(asking, 0, nothing)
        assert list(generation.token_ids) == reference(sampled=False)
        assert generation.replays == 0

    run(story)


def test_a_link_that_breaks_in_the_middle_is_bridged_by_the_client() -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        async def cut() -> None:
            swarm.world.cut(swarm.stages["a first"].peer, swarm.stages["a last"].peer)

        generation = await generate_with(asking, 5, cut)
        assert list(generation.token_ids) == reference(sampled=False)

    run(story)


@pytest.mark.parametrize("way", ["both", "onwards", "back"])
def test_frames_that_a_link_swallows_pass_through_the_client_and_cost_no_replay(way: str) -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        first, last = swarm.stages["a first"].peer, swarm.stages["a last"].peer

        async def swallow() -> None:
            if way != "back":
                swarm.world.swallow(first, last)
            if way != "onwards":
                swarm.world.swallow(last, first)

        began = asyncio.get_running_loop().time()
        generation = await generate_with(asking, 5, swallow)
        assert list(generation.token_ids) == reference(sampled=False)
        assert generation.replays == 0
        assert asyncio.get_running_loop().time() - began < 4.5  # before any deadline of the client

    run(story)


@pytest.mark.parametrize("victim", ["a first", "a last"])
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_a_killed_stage_costs_one_replay_and_no_token(victim: str, sampled: bool) -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        async def kill() -> None:
            stage = swarm.stages.pop(victim)
            swarm.world.kill(stage.peer)

        generation = await generate_with(asking, 5, kill, sampled=sampled)
        assert list(generation.token_ids) == reference(sampled=sampled)
        assert generation.replays == 1

    run(story)


def test_two_pipelines_that_each_lost_a_stage_serve_from_their_other_halves() -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        async def kill_both() -> None:
            for victim in ("a last", "b first"):
                swarm.world.kill(swarm.stages.pop(victim).peer)

        generation = await generate_with(asking, 5, kill_both)
        assert list(generation.token_ids) == reference(sampled=False)
        assert generation.replays == 1

    run(story)


@pytest.mark.parametrize("victim", ["a first", "a last"])
def test_a_stage_that_leaves_hands_its_sessions_over(victim: str) -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        async def leave() -> None:
            draining.append(asyncio.create_task(swarm.stages[victim].server.drain(0, 60.0)))
            await asyncio.sleep(0)
            await swarm.stages[victim].advertise()

        draining: list[asyncio.Task[None]] = []
        generation = await generate_with(asking, 5, leave)
        assert list(generation.token_ids) == reference(sampled=False)
        assert generation.replays == 1
        await draining[0]  # nobody is left there, long before the time is over

    run(story)


def test_a_shard_that_breaks_fails_over_at_once() -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        async def break_it() -> None:
            swarm.stages["a last"].server.on_answer(0, Broken("", "a rank is lost"))

        generation = await generate_with(asking, 5, break_it)
        assert list(generation.token_ids) == reference(sampled=False)

    run(story)


def test_without_a_replica_the_error_names_the_layers() -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        for name in ("a last", "b last"):
            swarm.stages[name].server.retire(0)
            await swarm.stages[name].advertise()
        with pytest.raises(NoRoute, match="layers 3-7 of 8"):
            await asking.generate(PROMPT, max_tokens=4, timeout_seconds=0.5)

    run(story)


def test_many_requests_share_the_stages_and_keep_apart() -> None:
    prompts = {"A": 3, PROMPT: 20, "The owl": 11, "x" * 300: 7, "1 2 3": 15, "Why?": 1}

    async def story(_swarm: MemorySwarm, asking: Client) -> None:
        generations = await asyncio.gather(
            *(asking.generate(prompt, max_tokens=count) for prompt, count in prompts.items())
        )
        for (prompt, count), generation in zip(prompts.items(), generations, strict=True):
            assert list(generation.token_ids) == expected(prompt, count), prompt

    run(story)


def test_a_bad_client_beside_a_good_one_changes_nothing() -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        stranger = swarm.world.channel("stranger")
        first, last = swarm.stages["a first"], swarm.stages["a last"]
        hops: list[list[Any]] = [[first.peer, 0, 3], [last.peer, 3, 8]]

        async def be_bad() -> None:
            for stage, hop in enumerate(hops):
                for message in bad_messages(stage, hops):
                    await stranger.send(hop[0], message)

        generation = await generate_with(asking, 5, be_bad)
        assert list(generation.token_ids) == reference(sampled=False)
        assert generation.replays == 0
        await stranger.close()

    run(story)


def test_a_client_that_goes_away_frees_every_stage() -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        async def go() -> None:
            swarm.world.kill(CLIENT)

        with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever a dead client sees
            async with asyncio.timeout(1):
                await generate_with(asking, 5, go)

    run(story)


faults = st.tuples(
    st.integers(1, 8),  # at this piece of text
    st.sampled_from(["kill", "leave", "break", "cut", "cut off", "heal"]),
    st.sampled_from(["first", "last"]),
)


async def happen(swarm: MemorySwarm, kind: str, which: str) -> None:
    """One fault at a stage of "a", if it is still there."""
    stage = swarm.stages.get(f"a {which}")
    if stage is None:
        return
    match kind:
        case "kill":
            swarm.world.kill(swarm.stages.pop(f"a {which}").peer)
        case "leave":
            stage.server.retire(0)
            await stage.advertise()
        case "break":
            stage.server.on_answer(0, Broken("", "broken"))
        case "cut off":
            swarm.world.cut(stage.peer, CLIENT)
        case "cut":
            swarm.world.cut(peer_named("a first"), peer_named("a last"))
        case "heal":
            swarm.world.heal(stage.peer, CLIENT)


@settings(max_examples=40, deadline=None)
@given(st.lists(faults, max_size=3), st.booleans())
def test_the_tokens_stay_the_same_whatever_happens_to_the_a_stages(
    happenings: list[tuple[int, str, str]], sampled: bool
) -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        due = sorted(happenings)
        options = SAMPLED if sampled else {}
        async with asking.stream(PROMPT, max_tokens=FEW, **options) as pieces:
            count = 0
            async for _ in pieces:
                count += 1
                while due and due[0][0] <= count:
                    await happen(swarm, *due.pop(0)[1:])
            assert list(pieces.generation.token_ids) == reference(sampled=sampled)[:FEW]

    run(story)


def test_sessions_that_outgrow_the_room_wait_for_each_other_and_lose_no_token(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "client.session.inference_session")
    monkeypatch.setattr(block_manager, "HEADROOM_TOKENS", 16)  # of the answer, that are promised
    prompts = ["Once upon a time " * 4, "The sea was calm that day. " * 5]
    many = 150  # three blocks and four are needed in the end, one and two to begin
    whole = [expected(prompt, many) for prompt in prompts]

    async def story() -> None:
        swarm = MemorySwarm()
        shard = lone_shard(0, 8)
        shard._runner.shrink(5 * BLOCK_TOKENS)
        await swarm.add_shard("lone", 0, 8, shard)
        async with asyncio.timeout(60), Client(swarm.invite, connect=swarm.connect) as asking:
            found = await asyncio.gather(
                *(asking.generate(each, max_tokens=many, speculate=0) for each in prompts)
            )
        assert [list(each.token_ids) for each in found] == whole
        assert [each.replays for each in found] == [0, 0]  # to wait is no replay
        assert "busy: No room to grow: 64 tokens are wanted, 0 are free. Try" in caplog.text
        assert shard.free_tokens == 5 * BLOCK_TOKENS
        await swarm.close()

    asyncio.run(story())
