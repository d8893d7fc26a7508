"""Swarms with stages in bf16: nodes told so on their command line, mixed routes, and replays."""

import asyncio
from pathlib import Path

import pytest
import torch

import client
from client.cli.swarm_status import read_status
from client.event_loop_thread import EventLoopThread
from client.network import open_links
from client.routing.live_plan import LivePlan, read_plan, trust_of
from node.worker.shard import LoadedShard
from swarm.invites import Invite
from swarm.wire.sampling_params import Sampling
from tests.node.worker.shards import generate as generate_here
from tests.whole.conftest import SPEC, WHOLE
from tests.whole.memory_swarm import MemorySwarm, shard_of
from tests.whole.overheard import PROMPT, Act, answer, nothing, overhear
from tests.whole.reference_model import expected, ids_of
from tests.whole.swarms import Part, nodes_in, shard_bytes

TOKENS = 32


def here(*stages: LoadedShard) -> list[int]:
    """The tokens of a chain of shards in this process, without any network."""
    return generate_here(stages, ids_of(PROMPT), Sampling(max_tokens=TOKENS))


def ask(dtypes: dict[str, tuple[str, str]], act: Act = nothing) -> tuple[list[int], set[str]]:
    """The tokens over two stages for every name, and the dtypes in which rows travelled."""
    heard: list[str] = []

    async def whole() -> list[int]:
        swarm = MemorySwarm()
        for name, (first, last) in dtypes.items():
            overhear(swarm, await swarm.add(f"{name} first", 0, 3, first), heard)
            overhear(swarm, await swarm.add(f"{name} last", 3, 8, last), heard)
        return await answer(swarm, act, max_tokens=TOKENS)

    return asyncio.run(whole()), set(heard) - {"i32"}


@pytest.mark.parametrize(
    ("first", "last"), [("bf16", "bf16"), ("bf16", "f32"), ("f32", "bf16"), ("f16", "bf16")]
)
def test_rows_travel_as_their_stage_makes_them_and_the_tokens_are_those_of_its_shards(
    first: str, last: str
) -> None:
    ids, travelled = ask({"a": (first, last)})
    assert travelled == {first}
    assert ids == here(shard_of(0, 3, "a first", first), shard_of(3, 8, "a last", last))


def test_a_swarm_in_bf16_answers_as_transformers_does_in_bf16() -> None:
    ids, _ = ask({"a": ("bf16", "bf16")})
    assert ids == expected(PROMPT, TOKENS, dtype=torch.bfloat16)


def test_a_replay_may_go_on_in_another_dtype() -> None:
    def kill(swarm: MemorySwarm) -> None:
        swarm.world.kill(swarm.stages.pop("a first").peer)

    ids, travelled = ask({"a": ("bf16", "bf16"), "b": ("f32", "f32")}, kill)
    assert travelled == {"bf16", "f32"}
    assert ids == expected(PROMPT, TOKENS)  # swarm-tiny is sure enough of these


def plan_of(invite: str, loop_thread: EventLoopThread) -> tuple[LivePlan, dict[str, str]]:
    """The plan in force, and what the devices of its peers advertise."""
    parsed = Invite.parse(invite)
    with loop_thread.hold(open_links(parsed)) as links:
        seen = loop_thread.run(read_status(links.board, parsed))
        dtypes = {peer: each.devices[0].dtype for peer, each in seen.capabilities.items()}
        plan = loop_thread.run(read_plan(links.board, links.channel, trust_of(parsed)))
        return plan, dtypes


@pytest.mark.slow
def test_a_node_told_bf16_serves_what_takes_twice_its_memory_in_f32(
    tmp_path: Path, loop_thread: EventLoopThread
) -> None:
    five, three = (shard_bytes(SPEC, layers, *WHOLE, ends=1) for layers in (5, 3))
    narrow = Part("narrow", five // 2, dtype="bf16")
    wide = Part("wide", three, slowdown=2.0)
    with nodes_in(tmp_path) as nodes:
        host = nodes.start(narrow, "--host")
        invite = host.line("invite:")
        other = nodes.start(wide, "--join", invite)
        for node in (host, other):
            node.line("ready:")
        assert host.line("offer:").endswith("in bf16")
        assert other.line("offer:").endswith("in f32")
        with loop_thread.hold(client.Client(invite)) as asking:
            generation = loop_thread.run(asking.generate(PROMPT, max_tokens=TOKENS))
        live, advertised = plan_of(invite, loop_thread)
    (pipeline,) = live.plan.pipelines
    assert {stage.layers: stage.dtype for stage in pipeline.stages} == {5: "bf16", 3: "f32"}
    assert all(stage.dtype == advertised[stage.shards[0].peer] for stage in pipeline.stages)
    chain = [shard_of(stage.start, stage.end, "here", stage.dtype) for stage in pipeline.stages]
    assert list(generation.token_ids) == here(*chain)


@pytest.mark.slow
def test_a_pair_in_bf16_shares_a_stage_beside_a_node_in_f32(
    tmp_path: Path, loop_thread: EventLoopThread
) -> None:
    parts = [
        Part("five", shard_bytes(SPEC, 4, 5, 5, ends=1) // 2, dtype="bf16"),
        Part("three", shard_bytes(SPEC, 4, 3, 3, ends=1) // 2, dtype="bf16"),
        Part("wide", shard_bytes(SPEC, 4, *WHOLE, ends=1), slowdown=2.0),
    ]
    with nodes_in(tmp_path) as nodes:
        host = nodes.start(parts[0], "--host")
        invite = host.line("invite:")
        for part in parts[1:]:
            nodes.start(part, "--join", invite)
        for node in nodes.started:
            node.line("ready:")
        with loop_thread.hold(client.Client(invite)) as asking:
            generation = loop_thread.run(asking.generate(PROMPT, max_tokens=TOKENS))
        live, _ = plan_of(invite, loop_thread)
    (pipeline,) = live.plan.pipelines
    assert {len(s.shards): (s.layers, s.dtype) for s in pipeline.stages} == {
        2: (4, "bf16"),
        1: (4, "f32"),
    }
    assert list(generation.token_ids) == expected(PROMPT, TOKENS, dtype=torch.bfloat16)
