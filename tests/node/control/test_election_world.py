"""Elections and plans in a simulated world: what must never happen, and what must in the end."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.control.plan_store import TermFence
from swarm.election import LEASE_SECONDS, PlanOrder
from swarm.records import Capability
from swarm.testing.memory_network import peer_named
from swarm.trust.certificates import PlannerTrust
from tests.node.control.election_world import LOOK_SECONDS, SWARM, Node, World

NAMES = ("anna", "bert", "carl", "dora", "emil")
PEERS = tuple(map(peer_named, NAMES))
CALM_SECONDS = Capability.TTL_SECONDS + 30.0 + LEASE_SECONDS  # TTL, two heartbeats, one lease

numbers = st.integers(0, len(NAMES) - 1)
events = st.one_of(
    st.tuples(st.just("wait"), numbers, st.floats(0.0, 20.0)),
    st.tuples(st.just("pause"), numbers, st.floats(1.0, 3 * LEASE_SECONDS)),
    st.tuples(st.just("kill"), numbers, st.just(0.0)),
    st.tuples(st.just("restart"), numbers, st.floats(-1.5, 1.5)),
    st.tuples(st.just("part"), st.integers(1, 2 ** len(NAMES) - 2), st.just(0.0)),
    st.tuples(st.just("heal"), numbers, st.just(0.0)),
    st.tuples(st.just("lose"), numbers, st.sampled_from([0.0, 0.3, 0.7])),
    st.tuples(st.just("die of a plan"), numbers, st.just(0.0)),
    st.tuples(st.just("plan slowly"), numbers, st.floats(5.0, 40.0)),
)
Event = tuple[str, int, float]


class Simulation:
    """A world that lives through events."""

    def __init__(self, folder: Path, seed: int, patch: pytest.MonkeyPatch) -> None:
        self.world = World(folder, Random(seed))
        for name in ("leader_election", "membership", "planner_loop"):
            patch.setattr(f"node.control.{name}.time", self.world)
        for name in ("leader_election", "membership"):
            patch.setattr(f"node.control.{name}.CLOCK", SimpleNamespace(now=self.world.time))
        patch.setattr("node.control.planner_loop.next_plan", self.world.next_plan)
        self.due = dict.fromkeys(PEERS, 0.0)

    @property
    def up(self) -> list[Node]:
        return [node for node in self.world.nodes.values() if node.is_up]

    @property
    def acting(self) -> list[Node]:
        return [node for node in self.up if node.acts]

    def join(self, number: int, skew: float) -> None:
        node = self.world.nodes.get(PEERS[number])
        if node is None:
            Node(self.world, NAMES[number], skew)
        elif not node.is_up:
            node.skew = skew
            node.start()

    async def pass_seconds(self, seconds: float) -> None:
        """Let every node look again and again, each in its own rhythm."""
        world = self.world
        end = world.now + seconds
        while (at := min(self.due.values())) <= end:
            peer = min(self.due, key=self.due.__getitem__)
            world.now = max(world.now, at)
            await world.let(peer)
            self.due[peer] = world.now + LOOK_SECONDS * world.draw.uniform(0.5, 3.0)
            self.due |= dict.fromkeys(world.news, world.now)
            world.news.clear()
        world.now = max(world.now, end)

    async def happen(self, event: Event) -> None:
        kind, number, amount = event
        world = self.world
        node = world.nodes.get(PEERS[number % len(PEERS)])
        match kind:
            case "wait":
                await self.pass_seconds(amount)
            case "pause" if node:
                node.paused_until = world.now + amount
            case "kill" if node:
                node.is_up = False
            case "restart":
                self.join(number, amount)
            case "part":
                world.sides = {peer: number >> at & 1 for at, peer in enumerate(PEERS)}
            case "heal":
                world.sides = {}
            case "lose":
                world.loss = amount
            case "die of a plan":
                world.kills_planner = True
            case "plan slowly":
                world.slow_plan = amount
        await self.pass_seconds(1.0)

    async def calm_down(self) -> None:
        """End every fault and give the world the time that it needs."""
        world = self.world
        world.sides, world.loss, world.slow_plan, world.kills_planner = {}, 0.0, 0.0, False
        for node in world.nodes.values():
            node.paused_until = min(node.paused_until, world.now)
        await self.pass_seconds(CALM_SECONDS)


async def live_through(simulation: Simulation, events: Sequence[Event]) -> None:
    for number, skew in enumerate((0.0, 1.5, -1.5)):
        simulation.join(number, skew)
    await simulation.pass_seconds(20.0)
    for event in events:
        await simulation.happen(event)
    if not simulation.up:
        simulation.join(0, 0.0)
    await simulation.calm_down()


def assert_one_planner_and_one_plan(simulation: Simulation) -> None:
    up = simulation.up
    holders = [node for node in up if node.election.holds]
    assert len(holders) == 1, f"{len(holders)} peers hold the lease"
    assert len({node.orders[-1] for node in up if node.orders}) == 1
    accepted = [node.plan_store.accepted for node in up]
    assert all(document is not None for document in accepted)
    planned = {shard.peer for d in accepted if d for _, shard in d.plan.shards()}
    assert planned == {node.peer for node in up}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.lists(events, max_size=14))
def test_plans_only_grow_later_and_one_planner_is_left_whatever_happens(
    seed: int, events: list[Event]
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        simulation = Simulation(Path(folder), seed, patch)
        asyncio.run(live_through(simulation, events))
        assert_one_planner_and_one_plan(simulation)


HARD: dict[str, list[Event]] = {
    "a planner that is slow to plan": [("plan slowly", 0, 30.0), ("restart", 3, 0.0)],
    "a planner that pauses for three leases": [
        *(("pause", number, 45.0) for number in range(3)),
        ("wait", 0, 50.0),
    ],
    "a split and a join on both sides": [
        ("part", 0b00011, 0.0),
        ("restart", 3, 0.0),
        ("wait", 0, 20.0),
        ("wait", 0, 20.0),
        ("heal", 0, 0.0),
    ],
    "everybody but one dies and comes back": [
        ("kill", 0, 0.0),
        ("kill", 1, 0.0),
        ("wait", 0, 20.0),
        ("restart", 0, 1.0),
        ("restart", 1, -1.0),
        ("kill", 2, 0.0),
    ],
    "a short silence of everybody": [("lose", 0, 0.7), ("wait", 0, 20.0), ("lose", 0, 0.0)],
    "a peer that pauses for ten seconds": [("pause", 1, 10.0), ("pause", 2, 10.0)],
}


@pytest.mark.parametrize("events", HARD.values(), ids=HARD)
def test_known_hard_days_end_well(
    events: list[Event], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = Simulation(tmp_path, 7, monkeypatch)
    asyncio.run(live_through(simulation, events))
    assert_one_planner_and_one_plan(simulation)


def test_a_planner_that_comes_back_alone_never_gives_one_term_two_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = Simulation(tmp_path, 3, monkeypatch)
    world = simulation.world

    async def story() -> None:
        for number in range(3):
            simulation.join(number, 0.0)
        world.kills_planner = True
        await simulation.pass_seconds(20.0)
        (planner,) = [node for node in world.nodes.values() if not node.is_up]
        world.sides = {planner.peer: 1}
        planner.start()
        await simulation.pass_seconds(30.0)
        assert planner.acts
        await simulation.calm_down()

    asyncio.run(story())
    assert_one_planner_and_one_plan(simulation)


class OnlyAnna(PlannerTrust):
    """An open swarm in which nobody but its founder may plan yet."""

    def accepts(self, peer: str, proof: bytes) -> bool:
        return peer == PEERS[0]


def test_a_lone_planner_whose_fence_is_lost_is_followed_again_within_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tests.node.control.election_world.MEMBERS", OnlyAnna(SWARM, is_private=False)
    )
    simulation = Simulation(tmp_path, 3, monkeypatch)

    async def story() -> None:
        for name in NAMES[1:3]:
            (tmp_path / name).mkdir()
            TermFence(tmp_path / name).accept(SWARM, PlanOrder(1000, 0, "ab"), common_term=1000)
        for number in range(3):
            simulation.join(number, 0.0)
        await simulation.pass_seconds(60.0)

    asyncio.run(story())
    assert_one_planner_and_one_plan(simulation)


def test_a_planner_that_dies_is_followed_within_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = Simulation(tmp_path, 3, monkeypatch)

    async def story() -> float:
        await live_through(simulation, [("restart", 3, 0.0)])
        (planner,) = [node for node in simulation.up if node.election.holds]
        planner.is_up = False
        died = simulation.world.now
        while not simulation.acting:
            await simulation.pass_seconds(0.5)
        return simulation.world.now - died

    assert asyncio.run(story()) <= LEASE_SECONDS


def test_a_quiet_world_keeps_its_planner_and_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = Simulation(tmp_path, 5, monkeypatch)

    async def story() -> tuple[set[str], set[int]]:
        await live_through(simulation, [])
        planners: set[str] = set()
        terms: set[int] = set()
        for _ in range(60):
            await simulation.pass_seconds(2.0)
            planners |= {node.peer for node in simulation.acting}
            terms |= {node.plan_store.term for node in simulation.up}
        return planners, terms

    planners, terms = asyncio.run(story())
    assert len(planners) == len(terms) == 1
