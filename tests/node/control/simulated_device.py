"""SimulatedDevice: the device of a simulated node, which loads by the clock and checks S5 and S8.

What to do it asks the node's own policy; how long to hold on to what serves, the node's own Grip.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from node.control.membership import Membership
from node.control.plan_store import PlanStore
from node.device import make_before_break, shard_policy
from node.device.make_before_break import Grip
from node.device.shard_policy import Drop, Lead, ShardFacts
from swarm.plan import Assignment, Pipeline
from swarm.records import Member, StageAdvert

LOAD_SECONDS = 8.0
# What an invariant grants, whatever the node's own figures are.
DWELL_SECONDS, BREAK_SECONDS = 300.0, 40.0


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass
class Load:
    """What is loaded, or was."""

    assignment: Assignment
    line: Pipeline | None  # in which it serves
    began: float

    def is_ready(self, now: float) -> bool:
        """Whether it serves."""
        return now - self.began >= LOAD_SECONDS


class SimulatedDevice:
    """One device of one node, which leads stages of its own."""

    def __init__(
        self, name: str, membership: Membership, store: PlanStore, clock: Callable[[], float]
    ) -> None:
        self.name = name
        self.load: Load | None = None
        self._membership = membership
        self._store = store
        self._clock = clock
        self._grip = Grip(membership.is_serving, membership.served_by_others)
        self._gave_up_at = -math.inf  # what was ready, for a plan
        self._asked_since: float | None = None  # for another part, while it serves

    @property
    def wants_adverts(self) -> bool:
        """Whether it matters here who serves what."""
        return self._grip.dropped_lately or self._grip.gives_way

    @property
    def serving(self) -> Assignment | None:
        """What is ready."""
        load = self.load
        return load.assignment if load and load.is_ready(self._clock()) else None

    def adverts(self) -> list[StageAdvert]:
        """What others read of it."""
        if self.serving is None:
            return []
        stage = self.serving.stage
        members = [Member(each.peer, each.index, each.kv, each.mlp) for each in stage.shards]
        return [StageAdvert(stage.start, stage.end, members, 1.0, 1, 0)]

    def tend(self) -> None:
        """Do what the policy says, and check that it may be done."""
        assigned = self._store.assignment_of(self.name)
        self._note_asked(assigned)
        match shard_policy.next_shard_duty(self._facts(assigned)):
            case Drop():
                self._drop(assigned)
            case Lead(assignment=assignment):
                self._begin(assignment)

    def _facts(self, assigned: Assignment | None) -> ShardFacts:
        load, serving = self.load, self.serving
        return ShardFacts(
            now=self._clock(),
            assigned=assigned,
            held=load.assignment if load else None,
            ready=serving is not None,
            since=load.began if load else -math.inf,
            failures=0,
            protected=self._grip.is_protected(load.line if load and serving else None),
            awaited=self._grip.is_awaited(serving, assigned, self._store.plan),
        )

    def _note_asked(self, assigned: Assignment | None) -> None:
        if self.serving is None or assigned in (None, self.serving):
            self._asked_since = None
        elif self._asked_since is None:
            self._asked_since = self._clock()

    def _begin(self, assignment: Assignment) -> None:
        if self.load is not None:
            raise Broken(f"S8: {self.name} begins a load while it holds another")
        self.load = Load(assignment, self._store.pipeline_of(self.name), self._clock())

    def _drop(self, assigned: Assignment | None) -> None:
        if self.load and self.serving and assigned:
            self._check_made_before_broken(self.serving)
            self._check_dwell(self.load)
            self._grip.note_drop()
            self._gave_up_at = self._clock()
        self.load = None

    def _check_dwell(self, load: Load) -> None:
        """S8: reloads for plans at most once in a dwell time while the pipeline serves."""
        is_whole = load.line is not None and self._membership.is_serving(load.line)
        if is_whole and self._clock() - self._gave_up_at < DWELL_SECONDS:
            raise Broken(f"S8: {self.name} reloads for plan after plan")

    def _check_made_before_broken(self, serving: Assignment) -> None:
        """S5: gives up no layer that it alone serves, as it sees others, which they are to load."""
        asked, plan = self._asked_since, self._store.plan
        others = self._membership.served_by_others(asked if asked is not None else math.inf)
        if plan is None or asked is None or self._clock() - asked >= BREAK_SECONDS:
            return
        if others is None:
            if self._clock() - asked < make_before_break.LOOK_SECONDS:
                raise Broken(f"S5: {self.name} gives up what it serves before it looked")
            return
        theirs = {layer for each in others for s in each.stages for layer in range(s.start, s.end)}
        own = range(serving.stage.start, serving.stage.end)
        is_whole = set(range(plan.pipelines[0].layers)) <= theirs | set(own)
        coming = {
            layer
            for stage, shard in plan.shards()
            if shard.device != self.name
            for layer in range(stage.start, stage.end)
        }
        if is_whole and (set(own) - theirs) & coming:
            raise Broken(f"S5: {self.name} gives up what nobody else serves yet")
