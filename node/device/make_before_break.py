"""Make before break: how long a device holds on to what it serves, whoever makes plans."""

import math
import time
from collections.abc import Callable, Iterable

from swarm.plan import Assignment, Pipeline, Plan, Stage
from swarm.records import Advert

BREAK_SECONDS = 40.0  # for others to load what only we serve, before we give it up all the same
LOOK_SECONDS = 3.0  # for the board to say what others serve
DWELL_SECONDS = 300.0  # a device drops what is ready and serves for a plan once in that time


class Grip:
    """What one device has been asked to give up, and has given up."""

    def __init__(
        self,
        is_serving: Callable[[Pipeline], bool],
        others: Callable[[float], list[Advert] | None],
    ) -> None:
        """`others` says what others serve, as read since a moment; None if it was not read."""
        self._is_serving = is_serving
        self._others = others
        self._asked_at: float | None = None  # since when a plan has another part for what serves
        self._dropped_at = -math.inf  # a ready shard, because a plan said so

    @property
    def gives_way(self) -> bool:
        """Whether a plan has another part for what serves."""
        return self._asked_at is not None

    @property
    def dropped_lately(self) -> bool:
        """Whether a plan made the device drop what was ready within the dwell time."""
        return time.monotonic() - self._dropped_at < DWELL_SECONDS

    def note_drop(self) -> None:
        """A ready shard is given up for a plan."""
        self._dropped_at = time.monotonic()

    def is_awaited(
        self, serving: Assignment | None, assigned: Assignment | None, plan: Plan | None
    ) -> bool:
        """Whether others still load what only we serve; they have some time for that."""
        if serving is None or assigned in (None, serving):
            self._asked_at = None
            return False
        now = time.monotonic()
        self._asked_at = now if self._asked_at is None else self._asked_at
        others = self._others(self._asked_at)
        if others is None or plan is None:
            return now - self._asked_at < LOOK_SECONDS
        return now - self._asked_at < BREAK_SECONDS and is_awaited(serving.stage, plan, others)

    def is_protected(self, line: Pipeline | None) -> bool:
        """Whether no plan may take what serves now: one did lately, and all of its pipeline serves.

        Whoever makes plans, a device reloads for them at most once in a dwell time.
        """
        return line is not None and self.dropped_lately and self._is_serving(line)


def is_awaited(stage: Stage, plan: Plan, others: Iterable[Advert]) -> bool:
    """Whether a stage is to serve until other devices of the plan serve its layers.

    Only while all layers are served: where some are not, nobody loses anything, and each new part
    is wanted at once. What the plan gives to the same devices again nobody else can take over.
    """
    elsewhere = {layer for each in others for s in each.stages for layer in range(s.start, s.end)}
    alone = set(range(stage.start, stage.end)) - elsewhere
    layers = max((pipeline.layers for pipeline in plan.pipelines), default=0)
    if set(range(layers)) - alone - elsewhere:
        return False
    ours = {shard.device for shard in stage.shards}
    coming = {
        layer
        for planned, shard in plan.shards()
        if shard.device not in ours
        for layer in range(planned.start, planned.end)
    }
    return bool(alone & coming)
