"""Promises: what the plan in force gave peers, held against what they advertise.

A part is broken that is not served in time, that its own device says it cannot take up, or that it
serves far slower than its figures say. No dwell time protects it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from swarm.formatting import printable
from swarm.model_spec import BYTES_PER_VALUE, ModelSpec
from swarm.plan import Plan, Stage
from swarm.records import Advert, Capability, StageAdvert, Trouble

SERVE_SECONDS = 60.0  # for a planned stage to be served, besides reading its weights
READ_BYTES_PER_SECOND = 8e6  # at least, from wherever the weights come
FAILURES = 2  # in a row that a device tells of, and others get its part
FAILING_SECONDS = 10.0  # after which one is enough
SLOW_FACTOR = 5.0  # times the seconds of a step that the device's own figures come to
SLOW_LEAST_SECONDS = 0.1  # of a step beyond that: what small models take is mostly overhead
CAUSE_CAP = 120  # characters

Promise = tuple[int, int, tuple[str, ...]]  # a planned stage: layers and devices


@dataclass(frozen=True, slots=True)
class BrokenPromise:
    """Peers that do not do their part, and why."""

    peers: frozenset[str]
    cause: str


class Promises:
    """What became of every stage of the plan in force while we looked; times are monotonic."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._missing_since: dict[Promise, float] = {}
        self._told: dict[Promise, object] = {}  # what broke it, so that it counts once
        self._tellers: set[str] = set()  # peers that have named others, and not served since
        self.keepers: frozenset[str] = frozenset()  # peers of stages that are served as planned

    def broken(
        self,
        plan: Plan | None,
        capabilities: Mapping[str, Capability],
        adverts: Mapping[str, Advert],
        now: float,
    ) -> list[BrokenPromise]:
        """What has been broken since the last look."""
        promises = {promise_of(stage): stage for stage in _stages_of(plan)}
        served = _served(adverts)
        slow = {p for p in promises.keys() & served if self._is_slow(served[p], capabilities)}
        self._missing_since = {
            promise: self._missing_since.get(promise, now)
            for promise in promises
            if promise not in served
        }
        missing = self._missing_since.keys()
        self._told = {p: why for p, why in self._told.items() if p in missing or p in slow}
        good = (promises[promise] for promise in promises.keys() & served.keys() - slow)
        self.keepers = frozenset(shard.peer for stage in good for shard in stage.shards)
        self._tellers = (self._tellers - self.keepers) & capabilities.keys()
        found = [*self._failing(promises, adverts, now), *self._late(promises, now)]
        return [*found, *self._slow(slow, promises)]

    def _failing(
        self, promises: Mapping[Promise, Stage], adverts: Mapping[str, Advert], now: float
    ) -> Iterator[BrokenPromise]:
        """What peers say themselves that they cannot take up."""
        for promise, since in self._missing_since.items():
            told = _troubles_with(promises[promise], adverts)
            is_soon = now - since < FAILING_SECONDS
            grave = {p: t for p, t in told.items() if not is_soon or _is_grave(t)}
            news = {p: replace(t, failures=0) if t.blamed else t for p, t in grave.items()}
            if grave and news != self._told.get(promise):
                self._told[promise] = news
                cause = printable(next(iter(grave.values())).cause, CAUSE_CAP)
                guilty = self._guilty(promises[promise], grave)
                yield BrokenPromise(guilty, cause or "it cannot be loaded")

    def _guilty(self, stage: Stage, grave: Mapping[str, Trouble]) -> frozenset[str]:
        """Who of a stage failed: whom a peer names, in its place; both where it names others again.

        Its word cannot be checked, so that it never costs another more than twice what it costs it.
        """
        ranks = {shard.peer for shard in stage.shards}
        named = {p: t.blamed for p, t in grave.items() if t.blamed in ranks - {p}}
        excused = named.keys() - self._tellers - {*named.values()}
        self._tellers |= named.keys()
        return frozenset((grave.keys() | {*named.values()}) - excused)

    def _late(self, promises: Mapping[Promise, Stage], now: float) -> Iterator[BrokenPromise]:
        for promise, since in self._missing_since.items():
            stage = promises[promise]
            if now - since > self._patience(stage):
                self._missing_since[promise] = now
                peers = frozenset(shard.peer for shard in stage.shards)
                yield BrokenPromise(peers, f"layers {_layers(stage)} were not served in time")

    def _slow(
        self, slow: set[Promise], promises: Mapping[Promise, Stage]
    ) -> Iterator[BrokenPromise]:
        for promise in slow - self._told.keys():
            self._told[promise] = "slow"
            stage = promises[promise]
            cause = f"layers {_layers(stage)} are far slower than its figures say"
            yield BrokenPromise(frozenset(shard.peer for shard in stage.shards), cause)

    def _patience(self, stage: Stage) -> float:
        size = stage.layers * self._spec.layer_parameters * BYTES_PER_VALUE
        return SERVE_SECONDS + size / READ_BYTES_PER_SECOND

    def _is_slow(self, advert: StageAdvert, capabilities: Mapping[str, Capability]) -> bool:
        """Whether a step takes far longer than reading the weights of it at the claimed speed.

        Of stages of one device only: what others wait for each other depends on their links.
        """
        (peer, index), *others = [(member.peer, member.device) for member in advert.members]
        known = capabilities[peer].devices if peer in capabilities else []
        device = next((each for each in known if each.index == index), None)
        if others or device is None or device.bytes_per_second <= 0:
            return False
        layers = advert.end - advert.start
        size = layers * self._spec.layer_parameters * device.weight_bytes
        claimed = SLOW_FACTOR * size / device.bytes_per_second
        return advert.step_seconds > claimed + SLOW_LEAST_SECONDS


def promise_of(stage: Stage) -> Promise:
    """What a planned stage is held to."""
    return stage.start, stage.end, tuple(shard.device for shard in stage.shards)


def _stages_of(plan: Plan | None) -> Iterator[Stage]:
    for pipeline in plan.pipelines if plan else ():
        yield from pipeline.stages


def _served(adverts: Mapping[str, Advert]) -> dict[Promise, StageAdvert]:
    """What leaders advertise and do not leave."""
    return {
        (stage.start, stage.end, tuple(f"{m.peer}/{m.device}" for m in stage.members)): stage
        for peer, advert in adverts.items()
        for stage in advert.stages
        if stage.members[0].peer == peer and not advert.leaving
    }


def _troubles_with(stage: Stage, adverts: Mapping[str, Advert]) -> dict[str, Trouble]:
    """By peer what it says of its own part of a stage."""
    return {
        shard.peer: trouble
        for shard in stage.shards
        if shard.peer in adverts
        for trouble in adverts[shard.peer].troubles
        if (trouble.device, trouble.start, trouble.end) == (shard.index, stage.start, stage.end)
    }


def _is_grave(trouble: Trouble) -> bool:
    return trouble.failures == 0 or trouble.failures >= FAILURES


def _layers(stage: Stage) -> str:
    return f"{stage.start}-{stage.end - 1}"
