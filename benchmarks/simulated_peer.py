"""SimulatedPeer: the control code of a node, with a device that loads by the clock."""

import asyncio
import shutil
import time
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from node.control.announcer import Announcer
from node.control.board_watcher import BoardWatcher, Control
from node.control.certification import Certification
from node.control.leader_election import LeaderElection
from node.control.membership import Membership
from node.control.next_plan import PlanDocument, problem_with
from node.control.plan_store import PlanStore
from node.control.planner_loop import PlannerLoop
from node.device.make_before_break import Grip
from node.device.shard_policy import Drop, Lead, ShardFacts, next_shard_duty
from swarm.election import LEASE_SECONDS, SKEW_SECONDS, PlanOrder
from swarm.errors import SwarmError
from swarm.hardware import Device
from swarm.model_spec import ModelSpec
from swarm.plan import Assignment, Pipeline, Plan
from swarm.records import Capability, Lease, Member, PlanRef, Record, StageAdvert
from swarm.task_set import TaskSet, supervise
from swarm.testing import virtual_time
from swarm.testing.simulated_network import SimulatedBoard, SimulatedLine, SimulatedNetwork
from swarm.trust.certificates import PlannerTrust
from swarm.trust.identity import Identity
from swarm.trust.network_clock import CLOCK

SWARM = "simulated"
PUBLISH_SECONDS = 2.0
LOAD_SECONDS = 20.0  # of a shard, whatever its size


@dataclass
class Findings:
    """What must never be, and what is worth knowing."""

    broken: list[str] = field(default_factory=list)
    votes: dict[tuple[int, str], Plan] = field(default_factory=dict)  # by term and planner
    plans: set[tuple[int, str]] = field(default_factory=set)  # that anybody accepted
    loads: int = 0
    lost_shards: int = 0  # ready ones that were given up for a plan


@dataclass
class Setting:
    """What all peers of a simulated swarm share."""

    network: SimulatedNetwork
    spec: ModelSpec
    folder: Path
    findings: Findings = field(default_factory=Findings)


class CheckedBoard(SimulatedBoard):
    """A board that notes when a planner speaks whose lease is over."""

    def __init__(self, network: SimulatedNetwork, peer: str, findings: Findings) -> None:
        super().__init__(network, peer)
        self._findings = findings
        self._confirmed_at: float | None = None

    async def publish(self, record: Record, *, ttl_seconds: float | None = None) -> None:
        """S6: no plan after the lease; then as any board."""
        sent = time.monotonic()
        if isinstance(record, PlanRef):
            since = self._confirmed_at
            if since is None or sent - since >= LEASE_SECONDS - SKEW_SECONDS:
                self._findings.broken.append(f"S6: {self.peer} publishes a plan without a lease")
        await super().publish(record, ttl_seconds=ttl_seconds)
        if isinstance(record, Lease):
            self._confirmed_at = sent


class SimulatedPeer:
    """A peer that can be killed, started again and sent away; its folder survives it."""

    def __init__(self, name: str, setting: Setting, device: Device, skew: float = 0.0) -> None:
        self.name = name
        self.identity = Identity.throwaway()
        self.peer = self.identity.peer
        self._device = f"{self.peer}/0"
        self.device = device
        self.is_up = False
        self._findings = setting.findings
        self._skew = skew
        self.held: Assignment | None = None
        self.is_ready = False
        self._network, self._spec = setting.network, setting.spec
        self._folder = setting.folder / name
        self._orders: list[PlanOrder] = []
        self._followed: PlanDocument | None = None
        self._tasks = TaskSet()

    def start(self) -> None:
        """Begin with what is in the folder."""
        self._folder.mkdir(exist_ok=True)
        self.is_up, self.held, self.is_ready = True, None, False
        self._since, self._failures = -1e9, 0
        self._line: Pipeline | None = None  # in which it serves
        context = copy_context()
        context.run(virtual_time.SKEW_SECONDS.set, self._skew)
        context.run(self._begin)

    def _begin(self) -> None:
        network, swarm = self._network, SWARM
        self.board = CheckedBoard(network, self.peer, self._findings)
        line = SimulatedLine(network, self.peer)
        trust = PlannerTrust(swarm, is_private=True)
        problem = partial(problem_with, spec=self._spec)
        self.plan_store = PlanStore(swarm, self._folder, line, problem_of=problem)
        self.membership = Membership(swarm, self._spec.digest, self.board, line, trust)
        self._grip = Grip(self.membership.is_serving, self.membership.served_by_others)
        certification = Certification(self.identity, trust, self._folder, line)
        self.election = LeaderElection(self.peer, self.board, self.membership)
        self.planner_loop = PlannerLoop(
            self._spec, self.board, self.membership, self.election, self.plan_store
        )
        self.announcer = Announcer(
            self.board, self.membership, self.plan_store, self, self._capability()
        )
        control = Control(
            self.membership, certification, self.election, self.planner_loop, self.plan_store
        )
        self.watcher = BoardWatcher(control, line, self)
        for name, loop in {
            "watching the board": self.watcher.run,
            "publishing records": self._publish,
        }.items():
            self._tasks.create(name, supervise(name, loop))

    async def kill(self, *, wipes: bool = False) -> None:
        """End without a word; with `wipes` the disk is lost too."""
        self.is_up, self.is_ready, self.held = False, False, None
        self._network.lines.pop(self.peer, None)
        await self._tasks.close()
        if wipes:
            shutil.rmtree(self._folder)
            self._orders.clear()

    async def leave(self) -> None:
        """Say goodbye, and end."""
        with suppress(SwarmError):
            await asyncio.gather(self.election.resign(), self.announcer.withdraw())
        await self.kill()

    # ------------------------------------------------------------------ as an onlooker

    @property
    def own_capability(self) -> Capability | None:
        """What it offers."""
        return self.announcer.capability

    @property
    def is_settled(self) -> bool:
        """Whether there is a plan, and all is loaded that it asks of us."""
        return self.plan_store.accepted is not None and (self.held is None or self.is_ready)

    @property
    def asks_for_adverts(self) -> bool:
        """Whether the device is about to let a shard go, or did lately."""
        return self._grip.dropped_lately or self._grip.gives_way

    @property
    def is_planning(self) -> bool:
        """Whether it holds the planner's lease."""
        return self.is_up and self.election.holds

    def note_look(self, *, adopted: bool) -> None:
        """Check what was accepted, and see to the device."""
        self._check()
        if adopted:
            self.announcer.publish_soon()
        self.tend()

    def _check(self) -> None:
        self._check_vote()
        order = self.plan_store.order
        if order is None or (self._orders and order == self._orders[-1]):
            return
        if self._orders and not order > self._orders[-1]:
            self._findings.broken.append(f"S1: {self.name} took {order} after {self._orders[-1]}")
        self._orders = [*self._orders[-3:], order]
        self._findings.plans.add((order.term, order.digest))

    def _check_vote(self) -> None:
        """S2: whatever anybody follows, of one planner and term there is one plan."""
        accepted = self.plan_store.accepted
        if accepted is None or accepted is self._followed:
            return
        self._followed = accepted
        votes = self._findings.votes.setdefault((accepted.term, accepted.planner), accepted.plan)
        if votes is not accepted.plan and votes != accepted.plan:
            self._findings.broken.append(f"S2: two plans of {accepted.planner}, {accepted.term}")

    # ------------------------------------------------------------------ the device

    def tend(self) -> None:
        """Do what the node's own policy says to do with the shard."""
        assigned = self.plan_store.assignment_of(self._device)
        match next_shard_duty(self._facts(assigned)):
            case Drop():
                self._drop()
                self.tend()
            case Lead(assignment=assignment):
                self._load(assignment)
            case _ if assigned and self.held is None and not assigned.leads:
                self._load(assigned)

    def _facts(self, assigned: Assignment | None) -> ShardFacts:
        serving = self.held if self.is_ready else None
        return ShardFacts(
            now=time.monotonic(),
            assigned=assigned,
            held=self.held,
            ready=self.is_ready,
            since=self._since,
            failures=self._failures,
            protected=self._grip.is_protected(self._line if serving else None),
            awaited=self._grip.is_awaited(serving, assigned, self.plan_store.plan),
        )

    def _drop(self) -> None:
        if self.is_ready:
            self._findings.lost_shards += 1
            self._grip.note_drop()
        self.held, self.is_ready = None, False

    def _load(self, assignment: Assignment) -> None:
        self._findings.loads += 1
        self.held, self.is_ready, self._since = assignment, False, time.monotonic()
        self._line = self.plan_store.pipeline_of(self._device)
        loop = asyncio.get_running_loop()
        loop.call_later(LOAD_SECONDS, self._finish_load, assignment, self._since)

    def _finish_load(self, assignment: Assignment, since: float) -> None:
        if self.is_up and self.held is assignment and self._since == since:
            self.is_ready = True

    def adverts(self) -> list[StageAdvert]:
        """What it leads and has loaded."""
        if self.held is None or not self.held.leads or not self.is_ready:
            return []
        stage = self.held.stage
        members = [Member(s.peer, s.index, s.kv, s.mlp) for s in stage.shards]
        return [StageAdvert(stage.start, stage.end, members, 0.01, 10_000, 0)]

    # ------------------------------------------------------------------ records

    async def _publish(self) -> None:
        while True:
            if self._network.is_paused(self.peer):
                await self._network.wait_out_pause(self.peer)
            with suppress(SwarmError):
                await self.announcer.publish_due(None)
            await asyncio.sleep(PUBLISH_SECONDS)

    def _capability(self) -> Capability:
        return Capability(
            self._spec.digest, [self.device], [], self.name, True, CLOCK.now(), name=self.name
        )
