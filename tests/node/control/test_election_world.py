"""Elections and plans in a simulated world: what must never happen, and what must in the end.

After every step: S1 fencing, S2 one vote, S3 a plan persisted before it is served, S6 lease
honesty by every clock, S7 no plan of a stranger, L4 no plan given up; where plans are shuffled and
devices take their time, S5 make before break and S8 calm. After calm: L1 one planner and one plan,
L2 a successor, L3 everybody planned with. With a guard taken out a drawn day must break. S4 is the
client's part.
"""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.control.next_plan import PlanDocument
from node.control.plan_store import PlanStore, TermFence
from node.device.make_before_break import Grip
from node.device.shard_policy import Keep, Lead, ShardDuty, ShardFacts
from swarm.election import LEASE_SECONDS, PlanOrder
from swarm.records import Capability, PlanRef
from swarm.testing.memory_network import peer_named
from swarm.trust.certificates import PlannerTrust
from tests.node.control.election_world import LOOK_SECONDS, SWARM, Node, World
from tests.node.control.simulated_device import Broken

NAMES = ("anna", "bert", "carl", "dora", "emil")
PEERS = tuple(map(peer_named, NAMES))
SKEW = 1.3  # of a wall clock; with its drift no two differ by more than 3 s
CALM_SECONDS = Capability.TTL_SECONDS + 30.0 + LEASE_SECONDS  # TTL, two heartbeats, one lease

numbers = st.integers(0, len(NAMES) - 1)
events = st.one_of(
    st.tuples(st.just("wait"), numbers, st.floats(0.0, 20.0)),
    st.tuples(st.just("pause"), numbers, st.floats(1.0, 3 * LEASE_SECONDS)),
    st.tuples(st.just("kill"), numbers, st.just(0.0)),
    st.tuples(st.just("restart"), numbers, st.floats(-SKEW, SKEW)),
    st.tuples(st.just("part"), st.integers(1, 2 ** len(NAMES) - 2), st.just(0.0)),
    st.tuples(st.just("heal"), numbers, st.just(0.0)),
    st.tuples(st.just("lose"), numbers, st.sampled_from([0.0, 0.3, 0.7])),
    st.tuples(st.just("depose"), numbers, st.just(0.0)),
    st.tuples(st.just("die of a plan"), numbers, st.just(0.0)),
    st.tuples(st.just("lose its disk"), numbers, st.floats(-SKEW, SKEW)),
    st.tuples(st.just("deafen"), st.integers(1, 2 ** len(NAMES) - 2), st.just(0.0)),
    st.tuples(st.just("replay"), st.integers(1, 30), st.just(0.0)),
    st.tuples(st.just("forge"), st.sampled_from([1, 5, 60, 1000, 2**40]), st.just(0.0)),
    st.tuples(st.just("plan slowly"), numbers, st.floats(5.0, 40.0)),
)
Event = tuple[str, int, float]


class Simulation:
    """A world that lives through events."""

    def __init__(self, folder: Path, seed: int, patch: pytest.MonkeyPatch) -> None:
        self.world = World(folder, Random(seed))
        for name in ("control.leader_election", "control.membership", "control.planner_loop"):
            patch.setattr(f"node.{name}.time", self.world)
        patch.setattr("node.device.make_before_break.time", self.world)
        for name in ("leader_election", "membership"):
            patch.setattr(f"node.control.{name}.CLOCK", SimpleNamespace(now=self.world.time))
        patch.setattr("node.control.planner_loop.next_plan", self.world.next_plan)
        self.peers = list(PEERS)  # who has which number; another one after its disk was lost
        self.due = dict.fromkeys(PEERS, 0.0)
        self.forgets = False  # whether a restart forgets what was voted for

    @property
    def up(self) -> list[Node]:
        return [node for node in self.world.nodes.values() if node.is_up]

    @property
    def acting(self) -> list[Node]:
        return [node for node in self.up if node.acts]

    def join(self, number: int, skew: float) -> None:
        node = self.world.nodes.get(self.peers[number])
        if node is None:
            Node(self.world, NAMES[number], skew)
        elif not node.is_up:
            node.skew = skew
            if self.forgets:
                (node.folder / "accepted.json").unlink(missing_ok=True)
            node.start()

    def lose_disk(self, number: int, skew: float) -> None:
        """Begin again without a state folder: as somebody else, for that is where the key lies."""
        if before := self.world.nodes.get(self.peers[number]):
            before.is_up = False
        fresh = Node(self.world, f"{NAMES[number]}{self.world.now}", skew)
        self.peers[number] = fresh.peer
        self.due[fresh.peer] = self.world.now

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
        if kind == "wait":
            await self.pass_seconds(amount)
        self._befall_a_node(kind, number % len(PEERS), amount)
        self._befall_the_network(kind, number, amount)
        await self.pass_seconds(1.0)

    def _befall_a_node(self, kind: str, number: int, amount: float) -> None:
        world = self.world
        node = world.nodes.get(self.peers[number])
        match kind:
            case "pause" if node:
                node.paused_until = world.now + amount
            case "kill" if node:
                node.is_up = False
            case "restart":
                self.join(number, amount)
            case "lose its disk":
                self.lose_disk(number, amount)
            case "depose":
                for holder in [each for each in self.up if each.election.holds]:
                    holder.is_up = False
            case "die of a plan":
                world.kills_planner = True
            case "plan slowly":
                world.slow_plan = amount

    def _befall_the_network(self, kind: str, number: int, amount: float) -> None:
        world = self.world
        sides = {peer: number >> at & 1 for at, peer in enumerate(self.peers)}
        match kind:
            case "part":
                world.sides = sides
            case "part from the dead":  # they come back where nobody remembers anything
                world.sides = {node.peer: 1 for node in world.nodes.values() if not node.is_up}
            case "deafen":
                world.deaf = {(a, b) for a in sides for b in sides if sides[a] > sides[b]}
            case "heal":
                world.sides, world.deaf = {}, set()
            case "lose":
                world.loss = amount
            case "replay":
                world.replay(number)
            case "forge":
                world.forge(number)

    async def calm_down(self) -> None:
        """End every fault and give the world the time that it needs."""
        world = self.world
        world.sides, world.loss, world.slow_plan, world.kills_planner = {}, 0.0, 0.0, False
        world.deaf = set()
        for node in world.nodes.values():
            node.paused_until = min(node.paused_until, world.now)
        await self.pass_seconds(CALM_SECONDS)


async def live_through(simulation: Simulation, events: Sequence[Event]) -> None:
    for number, skew in enumerate((0.0, SKEW, -SKEW)):
        simulation.join(number, skew)
    await simulation.pass_seconds(20.0)
    for event in events:
        await simulation.happen(event)
    if not simulation.up:
        simulation.join(0, 0.0)
    await simulation.calm_down()


def assert_one_planner(simulation: Simulation) -> None:
    up = simulation.up
    holders = [node for node in up if node.election.holds]
    assert len(holders) == 1, f"{len(holders)} peers hold the lease"
    assert len({node.orders[-1] for node in up if node.orders}) == 1
    assert all(node.plan_store.accepted is not None for node in up)


def assert_one_planner_and_one_plan(simulation: Simulation) -> None:
    assert_one_planner(simulation)
    accepted = [node.plan_store.accepted for node in simulation.up]
    planned = {shard.peer for d in accepted if d for _, shard in d.plan.shards()}
    assert planned == {node.peer for node in simulation.up}


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**16), st.lists(events, max_size=14), st.booleans())
def test_plans_only_grow_later_and_one_planner_is_left_whatever_happens(
    seed: int, events: list[Event], shuffles: bool
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        simulation = Simulation(Path(folder), seed, patch)
        simulation.world.shuffles = shuffles
        asyncio.run(live_through(simulation, events))
        assert_one_planner(simulation)
        if not shuffles:  # then somebody may be left out for a while, since it kept what it served
            assert_one_planner_and_one_plan(simulation)


def drawn_day(draw: Random) -> Iterator[Event]:
    """Again and again somebody is cut off, whoever plans dies of it, and all come back."""
    for _ in range(3):
        if draw.random() < 0.5:
            yield "depose", 0, 0.0
        yield "die of a plan", 0, 0.0
        yield "wait", 0, draw.uniform(10.0, 30.0)
        fault = draw.choice(["part", "deafen", "part from the dead"])
        yield fault, 1 << draw.randrange(len(NAMES)), 0.0
        yield from (("restart", number, draw.uniform(-SKEW, SKEW)) for number in range(5))
        yield "replay", 20, 0.0
        yield "pause", draw.randrange(5), draw.uniform(1.0, 3 * LEASE_SECONDS)
        yield "wait", 0, draw.uniform(5.0, 30.0)
        yield "heal", 0, 0.0
        yield "wait", 0, draw.uniform(1.0, 10.0)


def live_through_seeds(
    patch: pytest.MonkeyPatch, seeds: range, *, forgets: bool = False, shuffles: bool = False
) -> None:
    """Some drawn days, until one of them breaks an invariant."""
    for seed in seeds:
        with TemporaryDirectory() as folder:
            simulation = Simulation(Path(folder), seed, patch)
            simulation.forgets = forgets
            simulation.world.shuffles = shuffles
            asyncio.run(live_through(simulation, list(drawn_day(Random(seed)))))


SEEDS = range(20)


def test_drawn_days_break_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    live_through_seeds(monkeypatch, SEEDS[:3])


def test_without_fencing_a_drawn_day_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def accept(self: TermFence, swarm: str, order: PlanOrder, *, common_term: int = 0) -> bool:
        self._orders = {swarm: order}
        self._write(self._orders)
        return True

    monkeypatch.setattr(TermFence, "accept", accept)
    monkeypatch.setattr(PlanStore, "_is_wanted", lambda self, order: order != self._taken)
    with pytest.raises(Broken, match=r"S[12]"):
        live_through_seeds(monkeypatch, SEEDS)


def test_without_the_persisted_term_a_drawn_day_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Broken, match=r"S[12]"):
        live_through_seeds(monkeypatch, SEEDS, forgets=True)


def test_without_a_vote_before_a_plan_is_told_a_drawn_day_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def propose(
        self: PlanStore, document: PlanDocument, rank: int, *, common_term: int = 0
    ) -> PlanRef:
        data = document.to_bytes()
        return PlanRef(document.term, rank, self.put(data), len(data))

    monkeypatch.setattr(PlanStore, "propose", propose)
    with pytest.raises(Broken, match=r"S[12]"):
        live_through_seeds(monkeypatch, SEEDS)


def test_with_a_lease_that_never_ends_a_drawn_day_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("leader_election", "election_policy"):
        monkeypatch.setattr(f"node.control.{name}.may_act", lambda *_: True)
    with pytest.raises(Broken, match="S6"):
        live_through_seeds(monkeypatch, SEEDS)


@pytest.mark.slow
def test_many_drawn_days_break_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    live_through_seeds(monkeypatch, range(1000, 1200))


def test_without_the_gate_of_the_vote_a_drawn_day_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    accepts = TermFence.accept

    def accept(self: TermFence, swarm: str, order: PlanOrder, *, common_term: int = 0) -> bool:
        accepts(self, swarm, order, common_term=common_term)
        return True  # and follows it, whatever the fence says

    monkeypatch.setattr(TermFence, "accept", accept)
    monkeypatch.setattr(PlanStore, "_is_wanted", lambda self, order: order != self._taken)
    with pytest.raises(Broken, match=r"S[13]"):
        live_through_seeds(monkeypatch, SEEDS)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**16), st.lists(events, max_size=40))
def test_plans_only_grow_later_through_long_days(seed: int, events: list[Event]) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        simulation = Simulation(Path(folder), seed, patch)
        asyncio.run(live_through(simulation, events))
        assert_one_planner_and_one_plan(simulation)


def test_drawn_days_of_shuffled_plans_break_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    live_through_seeds(monkeypatch, SEEDS[:3], shuffles=True)


def test_without_make_before_break_a_drawn_day_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.device.make_before_break.is_awaited", lambda *_: False)
    with pytest.raises(Broken, match="S5"):
        live_through_seeds(monkeypatch, SEEDS, shuffles=True)


def test_without_a_dwell_time_a_drawn_day_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Grip, "is_protected", lambda *_: False)
    with pytest.raises(Broken, match=r"S8: .* plan after plan"):
        live_through_seeds(monkeypatch, SEEDS, shuffles=True)


def test_with_a_load_for_every_plan_a_drawn_day_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def next_shard_duty(facts: ShardFacts) -> ShardDuty:
        is_other = facts.assigned is not None and facts.assigned != facts.held
        return Lead(facts.assigned) if facts.assigned and is_other else Keep()

    monkeypatch.setattr("node.device.shard_policy.next_shard_duty", next_shard_duty)
    with pytest.raises(Broken, match=r"S8: .* holds another"):
        live_through_seeds(monkeypatch, SEEDS, shuffles=True)


def test_with_clocks_further_apart_than_is_allowed_for_a_drawn_day_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.node.control.test_election_world.SKEW", 6.0)
    with pytest.raises(Broken, match=r"S6: .* is over for"):
        live_through_seeds(monkeypatch, SEEDS)


@pytest.mark.slow
def test_many_drawn_days_of_shuffled_plans_break_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    live_through_seeds(monkeypatch, range(1000, 1200), shuffles=True)


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
