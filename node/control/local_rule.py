"""LocalRule: while nobody plans, an idle device takes layers that nobody serves.

Not all at once: idle peers are ranked, and each waits for those before it. Whoever plans again
finds the shard served, and may use it.
"""

import logging
import time
from collections.abc import Iterable, Iterator

from node.control.membership import Membership
from node.control.next_plan import problem_of
from node.control.plan_store import PlanStore
from planner.cost.cost_model import CostModel
from swarm.election import ERA_SECONDS, rank
from swarm.hardware import Device
from swarm.model_spec import ModelSpec
from swarm.plan import Assignment, Shard, Stage
from swarm.records import Advert, Capability
from swarm.trust.network_clock import CLOCK

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 20.0  # without a planner, and with layers that nobody serves
RANK_SECONDS = 30.0  # for each idle peer that is before us: it has to load, too


class LocalRule:
    """What our idle devices take up while there is no planner."""

    def __init__(
        self, swarm: str, spec: ModelSpec, membership: Membership, plan_store: PlanStore
    ) -> None:
        self._swarm = swarm
        self._spec = spec
        self._membership = membership
        self._plan_store = plan_store
        self._uncovered_since: float | None = None

    def look(self, own: Capability | None, *, is_planned: bool) -> None:
        """Give idle devices of ours a part, if it is time; whoever plans takes over."""
        store = self._plan_store
        gap = None if is_planned or own is None else first_gap(self._spec.layers, self._adverts())
        if is_planned:
            store.own_parts.clear()
        if gap is None or own is None:
            self._uncovered_since = None
        elif not store.own_parts and self._is_time():
            self._take(gap, own)

    def _take(self, gap: tuple[int, int], own: Capability) -> None:
        for index in self._idle_devices(self._membership.me, own):
            device = next(each for each in own.devices if each.index == index)
            part = self._part_of(device, gap, own)
            if part is not None:
                name = f"{self._membership.me}/{index}"
                self._plan_store.own_parts[name] = part
                logger.info("nobody plans: taking layers [%d,%d)", part.stage.start, part.stage.end)
                return

    def _part_of(self, device: Device, gap: tuple[int, int], own: Capability) -> Assignment | None:
        """As many layers from the start of the gap as the device holds."""
        costs, (start, end) = CostModel(problem_of(self._spec, {self._membership.me: own})), gap
        name = f"{self._membership.me}/{device.index}"
        shards = (Shard(name, self._spec.kv_heads, self._spec.mlp_blocks),)
        for last in range(end, start, -1):
            stage = Stage(start, last, shards, dtype=device.dtype)
            if costs.held(stage) >= 1:
                return Assignment(stage, 0)
        return None

    def _is_time(self) -> bool:
        """Whether layers have been uncovered for so long that it is our turn."""
        now = time.monotonic()
        self._uncovered_since = self._uncovered_since or now
        waited = now - max(self._uncovered_since, self._membership.vacant_since)
        return waited >= PAUSE_SECONDS + RANK_SECONDS * self._place()

    def _place(self) -> int:
        """How many idle peers are before us."""
        there = self._membership.capabilities
        idle = [peer for peer, each in there.items() if list(self._idle_devices(peer, each))]
        order = rank(self._swarm, int(CLOCK.now() // ERA_SECONDS), idle)
        me = self._membership.me
        return order.index(me) if me in order else len(order)

    def _idle_devices(self, peer: str, capability: Capability) -> Iterator[int]:
        """Devices that serve nothing, and have no part in the plan in force."""
        busy = {
            f"{m.peer}/{m.device}" for a in self._adverts() for s in a.stages for m in s.members
        }
        for device in capability.devices:
            name = f"{peer}/{device.index}"
            if name not in busy and not self._is_planned(name):
                yield device.index

    def _is_planned(self, device: str) -> bool:
        accepted = self._plan_store.accepted
        return accepted is not None and accepted.plan.stage_of(device) is not None

    def _adverts(self) -> list[Advert]:
        """What those serve that are there and stay."""
        there = self._membership.capabilities
        adverts = self._membership.adverts.items()
        return [each for peer, each in adverts if peer in there and not each.leaving]


def first_gap(layers: int, adverts: Iterable[Advert]) -> tuple[int, int] | None:
    """The first run of layers that nobody serves."""
    served = {
        layer
        for advert in adverts
        for stage in advert.stages
        for layer in range(stage.start, min(stage.end, layers))
    }
    start = next((layer for layer in range(layers) if layer not in served), None)
    if start is None:
        return None
    return start, next((layer for layer in range(start, layers) if layer in served), layers)
