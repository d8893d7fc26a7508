"""A world of nodes that elect and plan over a faulty DHT, on virtual clocks.

Real are LeaderElection, Membership, PlanStore with its TermFence, and PlannerLoop; the board is a
set of later-expiry-wins replicas that lose reads and writes, the channel knows who can be reached.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TypeVar

from node.control.leader_election import LeaderElection
from node.control.membership import HEARTBEAT_SECONDS, Membership, Standing
from node.control.plan_store import PlanStore, TermFence
from node.control.planner_loop import PlannerLoop
from swarm.election import LEASE_SECONDS, SKEW_SECONDS, PlanOrder
from swarm.errors import Deadline, PeerLost, SwarmError
from swarm.hardware import Device
from swarm.model_spec import ModelSpec
from swarm.p2p.plan_document import digest_of
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import Advert, Capability, Lease, Member, PlanRef, Record, StageAdvert
from swarm.testing.memory_network import peer_named
from swarm.testing.questions_only import QuestionsOnly
from tests.node.control.simulated_device import Broken, SimulatedDevice
from tests.node.memberships import MEMBERS

SWARM = "simulated"
LAYERS = 2
SPEC = ModelSpec("m", "digest", "llama", LAYERS, 8, 2, 2, 4, 16, 64, 64, 10, 10)
LOOK_SECONDS = 1.0
DRIFT, PACE = 1e-4, 0.01  # wall clocks are steered, monotonic clocks of machines that rest are not
EPOCH = 1_000_000.0  # wall clock at the start of the world
R = TypeVar("R", bound=Record)


@dataclass
class World:
    """Time, faults, and every node that is there."""

    folder: Path
    draw: Random
    now: float = 0.0  # monotonic on every machine
    loss: float = 0.0  # share of reads and writes that a replica misses
    sides: dict[str, int] = field(default_factory=dict)  # of a partition, by peer
    nodes: dict[str, "Node"] = field(default_factory=dict)
    running: str = ""  # whose step it is
    slow_plan: float = 0.0  # the next plan takes so long
    kills_planner: bool = False  # once others have its plan and it has not yet noted that itself
    news: set[str] = field(default_factory=set)  # peers that were told to look at once
    offered: dict[tuple[int, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    deaf: set[tuple[str, str]] = field(default_factory=set)  # sender and receiver, one way only
    told: list[tuple[Record, str, float]] = field(default_factory=list)  # all that was published
    shuffles: bool = False  # whether plans are pipelines of one or two, drawn anew every time

    def time(self) -> float:
        """The wall clock of the node whose step it is."""
        return self.wall_of(self.nodes[self.running])

    def wall_of(self, node: "Node") -> float:
        """The wall clock of a node, which is wrong, and ever more or less so."""
        return EPOCH + self.now * (1.0 + node.drift) + node.skew

    def monotonic(self) -> float:
        """The monotonic clock of the node whose step it is."""
        return self.nodes[self.running].monotonic()

    def reaches(self, one: str, other: str) -> bool:
        """Whether two live nodes can talk: ask and be answered."""
        return self.hears(one, other) and self.hears(other, one)

    def hears(self, sender: str, receiver: str) -> bool:
        """Whether what one live node sends reaches another."""
        both = (self.nodes.get(sender), self.nodes.get(receiver))
        up = all(node is not None and node.is_up for node in both)
        is_apart = self.sides.get(sender, 0) != self.sides.get(receiver, 0)
        return up and not is_apart and (sender, receiver) not in self.deaf

    def replay(self, records: int) -> None:
        """Bring old records once more, each to some node, as a late or evil replica does."""
        for record, peer, expiration in self.draw.choices(self.told, k=records * bool(self.told)):
            node = self.draw.choice(list(self.nodes.values()))
            node.board.take((type(record), peer), record, expiration)

    def forge(self, term: int) -> None:
        """Let a stranger, who answers nothing, claim lease and plan everywhere."""
        stranger = peer_named(f"stranger {self.draw.random()}")
        until = EPOCH + self.now + LEASE_SECONDS
        records = Lease(term, until), PlanRef(term, 0, "f" * 64, 100), capability_since(0.0, term)
        for node in self.nodes.values():
            for record in records:
                node.board.take((type(record), stranger), record, until)

    def is_lost(self) -> bool:
        """Whether one read or write of one replica fails."""
        return self.draw.random() < self.loss

    def next_plan(
        self,
        _spec: ModelSpec,
        capabilities: Mapping[str, Capability],
        _current: Plan | None,
        *,
        may_move: bool,
        reserves: Sequence[Stage] = (),
    ) -> tuple[Plan, str]:
        """Stands for the search: one stage over everybody; may take long."""
        self.now += self.slow_plan
        self.slow_plan = 0.0
        if self.shuffles:
            return self._shuffled(sorted(capabilities)), ""
        shards = tuple(Shard(f"{peer}/0", 1, 1) for peer in sorted(capabilities))
        return Plan((Pipeline((Stage(0, LAYERS, shards),)),) if shards else ()), ""

    def _shuffled(self, peers: list[str]) -> Plan:
        """Pipelines of two peers, and of one that is left: nobody keeps a part by intent."""
        self.draw.shuffle(peers)
        pairs = [peers[at : at + 2] for at in range(0, len(peers), 2)]
        return Plan(tuple(_pipeline_of(pair) for pair in pairs))

    async def let(self, name: str) -> None:
        """Let one node take a step, if it is up and not paused."""
        node = self.nodes.get(name)
        if node is not None and node.is_up and self.now >= node.paused_until:
            self.running = name
            await node.step()
            node.check()
            if self.kills_planner and (planner := self._planner_behind(node)):
                planner.is_up = self.kills_planner = False

    def _planner_behind(self, node: "Node") -> "Node | None":
        """The planner whose plan `node` has accepted before the planner itself."""
        accepted = node.plan_store.accepted
        planner = self.nodes.get(accepted.planner) if accepted else None
        if accepted is None or planner is None or planner.plan_store.accepted == accepted:
            return None
        return planner


def _pipeline_of(peers: Sequence[str]) -> Pipeline:
    each = LAYERS // len(peers)
    return Pipeline(
        tuple(
            Stage(at * each, (at + 1) * each, (Shard(f"{peer}/0", SPEC.kv_heads, 1),))
            for at, peer in enumerate(peers)
        )
    )


class Replica:
    """The board as one node sees it: its own copy and those that it can reach."""

    def __init__(self, world: World, node: "Node") -> None:
        self.peer = node.peer
        self._world, self._node = world, node
        self.copies: dict[tuple[type[Record], str], tuple[Record, float]] = {}
        self._last: dict[type[Record], float] = defaultdict(float)

    async def publish(self, record: Record, *, ttl_seconds: float | None = None) -> None:
        world, kind = self._world, type(record)
        self._node.check_publish(record)
        ttl = kind.TTL_SECONDS if ttl_seconds is None else ttl_seconds
        expiration = max(world.time() + ttl, self._last[kind] + 0.001)
        self._last[kind] = expiration
        world.told.append((record, self.peer, expiration))
        for node in world.nodes.values():
            own = node is self._node
            if own or (world.hears(self.peer, node.peer) and not world.is_lost()):
                node.board.take((kind, self.peer), record, expiration)

    def take(self, key: tuple[type[Record], str], record: Record, expiration: float) -> None:
        before = self.copies.get(key)
        if before is None or before[1] < expiration:
            self.copies[key] = record, expiration

    async def read(self, kind: type[R], *, latest: bool = True) -> dict[str, R]:
        world, wall = self._world, self._world.time()
        found: dict[str, tuple[R, float]] = {}
        for node in world.nodes.values():
            if node is not self._node and (
                not world.reaches(self.peer, node.peer) or world.is_lost()
            ):
                continue
            for (_, peer), (record, expiration) in node.board.copies.items():
                if isinstance(record, kind) and expiration > wall:
                    before = found.get(peer)
                    if before is None or before[1] < expiration:
                        found[peer] = record, expiration
        return {peer: record for peer, (record, _) in found.items()}

    async def close(self) -> None:
        """Nothing is held open."""


class Line(QuestionsOnly):
    """The channel of one node: questions to whoever can be reached."""

    def __init__(self, world: World, peer: str) -> None:
        super().__init__(peer)
        self._world = world

    async def ask(
        self, peer: str, name: str, payload: bytes, *, timeout_seconds: float = 5.0
    ) -> bytes:
        world = self._world
        if not world.reaches(self.peer, peer):
            raise PeerLost("out of reach", peer=peer)
        other = world.nodes[peer]
        if world.now < other.paused_until or world.is_lost():
            raise Deadline("no answer", peer=peer)
        return await other.line.answered(self.peer, name, payload)


class Node:
    """The electing and planning part of one node; a restart keeps its folder and its peer id."""

    def __init__(self, world: World, name: str, skew: float) -> None:
        self.name, self.peer = name, peer_named(name)
        self.skew = skew
        self.drift = world.draw.uniform(-DRIFT, DRIFT)  # of its wall clock
        self.pace = 1.0 + world.draw.uniform(-PACE, PACE)  # of its monotonic clock
        self.is_up = True
        self.paused_until = 0.0
        self.orders: list[PlanOrder] = []
        self._world = world
        self.folder = world.folder / name
        self.folder.mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        """Begin with what is on disk, and nothing else."""
        world = self._world
        world.nodes[self.peer] = self
        world.running = self.peer
        self.is_up = True
        self.board = Replica(world, self)
        self.line = Line(world, self.peer)
        self.line.answer("news", self._hear_news)
        self.plan_store = PlanStore(SWARM, self.folder, self.line)
        self.membership = Membership(SWARM, SPEC.digest, self.board, self.line, MEMBERS)
        self.election = LeaderElection(self.peer, self.board, self.membership)
        self.planner_loop = PlannerLoop(
            SPEC, self.board, self.membership, self.election, self.plan_store
        )
        self.device = SimulatedDevice(
            f"{self.peer}/0", self.membership, self.plan_store, self.monotonic
        )
        self.acts = False
        self._since = world.time()
        self._spoken_at = -HEARTBEAT_SECONDS
        self._confirmed_at: float | None = None  # our own account of the last lease
        self._until = 0.0  # when it is over, by the wall clocks of all
        self._held = False
        self._had_plan = False

    def monotonic(self) -> float:
        """Its monotonic clock."""
        return self._world.now * self.pace

    async def step(self) -> None:
        """One look at the board, as a node does it."""
        membership, world = self.membership, self._world
        capability = self._capability()
        if world.now - self._spoken_at >= HEARTBEAT_SECONDS:
            self._spoken_at = world.now
            await self.board.publish(capability)
        self.acts, self._held = False, self.election.holds
        membership.verified_term = self.plan_store.term
        membership.own = Standing(self.plan_store.term)
        membership.reads_adverts = self.election.holds or self.device.wants_adverts
        await membership.refresh()
        membership.note_own(capability)
        await membership.ask_whether_alive(membership.due(everybody=self.election.holds))
        try:
            if await self.election.pursue():
                self._check_lease("acts")
                self.acts = True
                await self.planner_loop.work()
            elif not self.election.holds:
                self.planner_loop.forget()
        except SwarmError:
            self.acts = False  # Node logs it and looks again
            return
        if await self.plan_store.adopt_latest(membership):
            self._spoken_at = -HEARTBEAT_SECONDS
        await self._advertise()

    async def _advertise(self) -> None:
        """Serve what the plan gives us to lead: at once, or when the device has loaded it."""
        if self._world.shuffles:
            self.device.tend()
            stages, term = self.device.adverts(), self.plan_store.term
            await self.board.publish(Advert(SPEC.digest, stages, term))
            return
        accepted = self.plan_store.accepted
        plan = accepted.plan if accepted else Plan(())
        stages = [
            StageAdvert(
                s.start, s.end, [Member(e.peer, e.index, e.kv, e.mlp) for e in s.shards], 1, 1, 0
            )
            for pipeline in plan.pipelines
            for s in pipeline.stages
            if s.shards[0].peer == self.peer
        ]
        await self.board.publish(Advert(SPEC.digest, stages, self.plan_store.term))

    async def _hear_news(self, _peer: str, _payload: bytes) -> bytes:
        self._world.news.add(self.peer)
        return b""

    def check(self) -> None:
        """What must be true after every step."""
        if self.plan_store.accepted is None and self._had_plan:
            raise Broken(f"L4: {self.name} gave up its plan")
        self._had_plan = self.plan_store.accepted is not None
        order = TermFence(self.folder).order_of(SWARM)
        if order is not None and (not self.orders or order != self.orders[-1]):
            if self.orders and not order > self.orders[-1]:
                raise Broken(f"S1: {self.name} accepted {order} after {self.orders[-1]}")
            self.orders.append(order)
        accepted = self.plan_store.accepted
        if accepted is None:
            return
        if accepted.planner not in self._world.nodes:
            raise Broken(f"S7: {self.name} follows {accepted.planner}, who is no member")
        digest = digest_of(accepted.to_bytes())
        if (accepted.term, digest) not in {(each.term, each.digest) for each in self.orders}:
            raise Broken(f"S1: {self.name} follows a plan that was not persisted")
        votes = self._world.offered[accepted.term, accepted.planner]
        votes.add(digest)
        if len(votes) > 1:
            raise Broken(f"S2: two plans of term {accepted.term} of {accepted.planner}")

    def check_publish(self, record: Record) -> None:
        """What must be true when something is published."""
        if isinstance(record, PlanRef):
            self._check_lease("publishes a plan")
        elif isinstance(record, Advert) and record.stages:
            order = TermFence(self.folder).order_of(SWARM)
            if order is None or record.term > order.term:
                raise Broken(f"S3: {self.name} serves a plan of term {record.term} unpersisted")
        elif isinstance(record, Lease):
            if self._held:
                self._check_lease("renews its lease")
            self._confirmed_at, self._until = self.monotonic(), record.until
            self._held = True

    def _check_lease(self, what: str) -> None:
        since, now = self._confirmed_at, self.monotonic()
        if since is None or now - since >= LEASE_SECONDS - SKEW_SECONDS:
            raise Broken(f"S6: {self.name} {what} at {now}, confirmed at {since}")
        over = [n for n in self._world.nodes.values() if self._world.wall_of(n) >= self._until]
        if over:
            raise Broken(f"S6: {self.name} {what}, and the lease is over for {over[0].name}")

    def _capability(self) -> Capability:
        return capability_since(self._since, self.plan_store.term)


def capability_since(since: float, term: int) -> Capability:
    """What every node offers."""
    device = Device(0, "cpu", "cpu", 1, 1.0, 1.0)
    made = Capability(SPEC.digest, [device], [], "host", True, since)
    return replace(made, term=term)
