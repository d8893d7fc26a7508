"""Whatever strangers publish, answer and ask: no look fails, and an honest plan is followed."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.control.next_plan import PlanDocument
from node.node import Node
from swarm.election import TERM_JUMP
from swarm.errors import PeerRefused, SwarmError
from swarm.hardware import Device, Link
from swarm.plan import Plan
from swarm.records import (
    TERM_CAP,
    Advert,
    Capability,
    Lease,
    Member,
    PlanRef,
    Record,
    StageAdvert,
)
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.trust.certificates import PROOF_CAP, founder_proof
from swarm.trust.identity import Identity, swarm_id
from swarm.trust.network_clock import CLOCK
from tests.node.memberships import SPEC, capability_of
from tests.node.nodes import node_of

FOUNDER = Identity.throwaway()
SWARM = swarm_id("tiny", FOUNDER.peer)
PROOF = founder_proof(SWARM, FOUNDER.peer)
STRANGERS = [peer_named(f"stranger {number}") for number in range(3)]
ORDINARY = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LONG = settings(ORDINARY, max_examples=10_000)

words = st.sampled_from(["", "d" * 64, SPEC.digest, "\ud800", "\x1b[2J", "[/]", *STRANGERS, SWARM])
words |= st.text(max_size=8)
terms = st.integers(0, 2 * TERM_JUMP) | st.sampled_from([2**32, TERM_CAP - 1, TERM_CAP])
counts = st.integers(0, 9) | st.sampled_from([2**31, 2**63, 2**64 - 1, 10**30])
figures = st.floats(0, 1e300, exclude_min=True) | st.sampled_from([1e-300, 1.0, 1e15])
times = st.floats(-1e300, 1e300) | st.floats(-60, 60).map(lambda seconds: CLOCK.now() + seconds)
proofs = st.binary(max_size=PROOF_CAP + 8) | st.just(PROOF) | st.just(PROOF + b"\0" * 104)
dtypes = st.sampled_from(["f32", "bf16"])
devices = st.builds(
    Device,
    counts,
    words,
    words,
    counts,
    figures,
    figures,
    figures,
    st.sampled_from(["f32", "bf16"]),
)
links = st.builds(Link, words, figures, figures)
capabilities = st.builds(
    Capability,
    model=st.just(SPEC.digest) | words,
    devices=st.lists(devices, max_size=3),
    links=st.lists(links, max_size=3),
    host=words,
    reachable=st.booleans(),
    since=times,
    name=words,
    version=words,
    leaving=st.booleans(),
    term=terms,
    addresses=st.lists(words, max_size=2),
    protocol=st.integers(-3, 9),
)
members = st.builds(Member, words, counts, counts, counts)
stages = st.builds(
    lambda start, layers, held, seconds, tokens, sessions: StageAdvert(
        start, start + layers, held, seconds, tokens, sessions
    ),
    *(
        counts,
        st.integers(1, 9),
        st.lists(members, min_size=1, max_size=3),
        figures,
        counts,
        counts,
    ),
)
adverts = st.builds(
    Advert, st.just(SPEC.digest), st.lists(stages, max_size=3), terms, st.booleans()
)
leases = st.builds(Lease, terms, times, proofs)
json_values = st.recursive(
    st.none() | st.booleans() | counts | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
shard_values = st.fixed_dictionaries(
    {"device": words | st.just(f"{STRANGERS[0]}/0"), "kv": counts, "mlp": counts | json_values}
)
stage_values = st.fixed_dictionaries(
    {"start": counts, "end": counts, "shards": st.lists(shard_values, max_size=3)},
    optional={"dtype": words, "ends": words, "holders": json_values},
)
whole_stage = st.builds(
    lambda device: {"start": 0, "end": 8, "shards": [{"device": device, "kv": 8, "mlp": 8}]},
    st.sampled_from([f"{peer}/0" for peer in (*STRANGERS, FOUNDER.peer)]) | words,
)
plan_values = st.fixed_dictionaries(
    {
        "pipelines": st.lists(
            st.fixed_dictionaries({"stages": st.lists(whole_stage | stage_values, max_size=2)}),
            max_size=2,
        )
        | json_values
    }
)
documents = st.fixed_dictionaries(
    {
        "plan": plan_values | json_values,
        "term": terms | json_values,
        "planner": st.sampled_from(STRANGERS) | words | json_values,
        "model": st.just(SPEC.digest) | json_values,
    },
    optional={"reason": words | json_values, "objective": words | json_values, "more": json_values},
).map(lambda values: json.dumps(values).encode())
documents |= st.binary(max_size=40)
answers = (
    st.none()
    | st.binary(max_size=40)
    | st.tuples(terms | counts, proofs).map(lambda values: msgpack.packb(_travelling(values)))
)


def _travelling(values: tuple[int, bytes]) -> list[Any]:
    return [min(values[0], 2**64 - 1), values[1]]


@dataclass(frozen=True)
class Stranger:
    """What one stranger publishes and answers."""

    peer: str
    records: list[Record]
    document: bytes
    offered_term: int
    alive: bytes | None  # None: it refuses


strangers = st.builds(
    Stranger,
    st.sampled_from(STRANGERS),
    st.lists(capabilities | adverts | leases, max_size=4),
    documents,
    terms,
    answers,
)


def answering(data: bytes | None) -> Callable[[str, bytes], Any]:
    """A handler that gives these bytes, or refuses."""

    async def answer(_peer: str, _payload: bytes) -> bytes:
        if data is None:
            raise PeerRefused("No.")
        return data

    return answer


async def move_in(world: MemoryWorld, stranger: Stranger) -> None:
    """Put a stranger's records straight on the board, as if every node had let them pass."""
    channel = world.channel(stranger.peer)
    channel.answer("alive", answering(stranger.alive))
    channel.answer("news", answering(stranger.alive))
    channel.answer("certify", answering(stranger.document))
    channel.answer("plan", answering(stranger.document))
    digest = hashlib.sha256(stranger.document).hexdigest()
    offer = PlanRef(stranger.offered_term, 0, digest, len(stranger.document))
    lease = Lease(stranger.offered_term, CLOCK.now() + 9, b"")
    for record in (capability_of(), lease, offer, *stranger.records):
        world.records[type(record), stranger.peer] = record, world.clock.now() + 15


async def found(world: MemoryWorld, term: int) -> None:
    """Let the founder plan that nobody has a part yet."""
    document = PlanDocument(Plan(()), term, FOUNDER.peer, SPEC.digest, reason="too few peers")
    data, channel, board = (
        document.to_bytes(),
        world.channel(FOUNDER.peer),
        world.board(FOUNDER.peer),
    )
    channel.answer("alive", answering(msgpack.packb([term, PROOF])))
    channel.answer("plan", answering(data))
    await board.publish(capability_of())
    await board.publish(Lease(term, CLOCK.now() + 15, PROOF))
    await board.publish(PlanRef(term, 0, hashlib.sha256(data).hexdigest(), len(data)))


async def look_among(crowd: list[Stranger], folder: Path) -> Node:
    """One node between the founder and strangers looks at all of them, twice."""
    world = MemoryWorld()
    await found(world, 3)
    for stranger in crowd:
        await move_in(world, stranger)
    node = node_of(world, "me", folder, [], swarm=SWARM, key="")
    node._membership.reads_adverts = True
    for _ in range(2):
        await node._board_watcher.look()
    return node


def check(crowd: list[Stranger]) -> None:
    """Nothing leaves the looks, and the founder's plan is followed."""
    with TemporaryDirectory() as folder:
        node = asyncio.run(look_among(crowd, Path(folder)))
    assert node._plan_store.accepted is not None
    assert node._plan_store.accepted.planner == FOUNDER.peer
    assert node._plan_store.term == node._membership.trusted_term == 3
    assert not node._election.holds


@ORDINARY
@given(st.lists(strangers, max_size=3))
def test_a_node_among_strangers_follows_the_founder(crowd: list[Stranger]) -> None:
    check(crowd)


@pytest.mark.slow
@LONG
@given(st.lists(strangers, max_size=3))
def test_a_node_among_many_strangers_follows_the_founder(crowd: list[Stranger]) -> None:
    check(crowd)


async def plan_among(crowd: list[Stranger], folder: Path) -> None:
    """A planner of a private swarm, whose members may say anything, plans and goes on."""
    world = MemoryWorld()
    for stranger in crowd:
        await move_in(world, stranger)
    node = node_of(world, "me", folder, [], key="secret")
    node._membership.reads_adverts = True
    node._membership._vacant_since -= 100.0
    for _ in range(3):
        with contextlib.suppress(SwarmError):  # which the loop expects
            await node._board_watcher.look()


@settings(ORDINARY, max_examples=100)
@given(st.lists(strangers, max_size=2))
def test_no_record_of_a_member_ends_the_look_of_a_planner(crowd: list[Stranger]) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name in (
            "node.control.election_policy.SETTLE_SECONDS",
            "node.control.planner_loop.CALM_SECONDS",
        ):
            patch.setattr(name, 0.0)
        patch.setattr(
            "node.control.planner_loop.next_plan", lambda *_, **__: (Plan(()), "a reason")
        )
        asyncio.run(plan_among(crowd, Path(folder)))


def refuses_or_reads(data: bytes) -> None:
    """A document is read whole, or refused with a ValueError; what is read can be shown."""
    try:
        document = PlanDocument.of_bytes(data)
    except ValueError:
        return
    shown = " ".join((document.reason, document.planner, document.model, document.objective))
    assert shown.isprintable()
    assert document.term <= TERM_CAP
    assert PlanDocument.of_bytes(document.to_bytes()) == document


@ORDINARY
@given(documents)
def test_a_document_of_a_stranger_is_read_or_refused(data: bytes) -> None:
    refuses_or_reads(data)


@pytest.mark.slow
@LONG
@given(documents)
def test_any_document_of_a_stranger_is_read_or_refused(data: bytes) -> None:
    refuses_or_reads(data)


@settings(ORDINARY, max_examples=100)
@given(st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()))
def test_a_group_request_of_a_stranger_is_refused_with_an_error_of_ours(payload: bytes) -> None:
    async def story() -> None:
        with TemporaryDirectory() as folder:
            node = node_of(MemoryWorld(), "me", Path(folder), [])
            with pytest.raises(SwarmError):
                await node._answer_group(STRANGERS[0], payload)

    asyncio.run(story())
