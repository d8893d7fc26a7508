"""Local search over which groups serve together, for most tokens per second."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.search.device_group import DeviceGroup
from planner.search.group_pool import GroupPool
from planner.search.operators import OPERATORS, Change, Part, Partition, with_even_groups
from planner.stop import StopRule
from swarm.plan import Plan

GAIN = 1e-6


@dataclass(frozen=True, eq=False, slots=True)
class Objective:
    """What a partition is worth: all parts for tokens per second, the best one for latency."""

    pool: GroupPool
    name: str

    def value(self, part: Part) -> float:
        """The value of the groups as one pipeline; 0 if they cannot hold the model."""
        return self.pool.evaluate(part, self.name).value if part else 0.0

    def total(self, partition: Partition) -> float:
        """The value of all parts."""
        values = [self.value(part) for part in partition.parts]
        return max(values, default=0.0) if self.name == "latency" else sum(values)

    def with_feasible_parts(self, partition: Partition) -> Partition:
        """The partition with parts that cannot work turned into spares."""
        idle = tuple(group for p in partition.parts if not self.value(p) for group in p)
        return Partition(tuple(p for p in partition.parts if self.value(p)), partition.spare + idle)

    def improve(self, partition: Partition, stop: StopRule, draw: random.Random) -> Partition:
        """Try random operators until many in a row gain nothing or the stop rule says so."""
        value, failures = self.total(partition), 0
        operators, weights = zip(*OPERATORS, strict=True)
        params = self.pool.params.local
        patience = params.patience + params.patience_per_pipeline * len(partition.parts)
        budget = self.pool.work + params.most_work
        while failures < patience and self.pool.work < budget and not stop(-value):
            failures += 1
            if not partition.parts:
                break
            change = draw.choices(operators, weights)[0](self.pool, partition, draw)
            if change is not None and self._pays(partition, change):
                partition = self.with_feasible_parts(change.apply_to(partition))
                value, failures = self.total(partition), 0
        return partition

    def _pays(self, partition: Partition, change: Change) -> bool:
        before = sum(self.value(partition.parts[i]) for i in change.old)
        after = sum(self.value(part) for part in change.new)
        return after > before * (1 + GAIN)

    def plan(self, partition: Partition) -> Plan:
        """The plan that the partition stands for."""
        built = [self.pool.build(part, self.name) for part in partition.parts]
        return Plan(tuple(pipeline for pipeline in built if pipeline is not None))


def best_partition(
    objective: Objective, others: Sequence[Partition], stop: StopRule, seed: int
) -> tuple[float, Partition]:
    """The best partition found, and its value, from our own starts and `others`."""
    ranked = sorted(
        [*others, *starts_of(objective.pool)], key=lambda partition: -objective.total(partition)
    )
    draw = random.Random(seed)
    best = (0.0, Partition(()))
    for start in ranked[: objective.pool.params.local.starts_kept]:
        partition = objective.improve(
            _regrouped_if_better(objective, objective.with_feasible_parts(start)), stop, draw
        )
        best = max(best, (objective.total(partition), partition), key=lambda pair: pair[0])
        if stop(-best[0]):
            break
    return best


def _regrouped_if_better(objective: Objective, start: Partition) -> Partition:
    """The start in even groups if that gains much; small gains are better found one by one."""
    regrouped = with_even_groups(objective.pool, objective.value, start)
    least = objective.total(start) * objective.pool.params.local.regrouping_gain
    return regrouped if objective.total(regrouped) > least else start


def starts_of(pool: GroupPool) -> Iterator[Partition]:
    """Tilings of the machines, each split into 1, 2, 3 ... pipelines, near ones and mixed ones."""
    for groups in tilings(pool):
        ordered = pool.in_order(groups)
        for count in _counts(_most_pipelines(pool, ordered), pool.params.local.most_starts):
            yield Partition(_contiguous(ordered, count))
            if count > 1:
                yield Partition(_mixed(ordered, count))


def tilings(pool: GroupPool) -> Iterator[list[DeviceGroup]]:
    """Machines cut into tensor-parallel groups of 1, 2, 4 ... devices; small devices united."""
    machines: dict[int, list[int]] = {}
    for number in pool.devices:
        machines.setdefault(int(pool.problem.machine_of[number]), []).append(number)
    largest = max(len(members) for members in machines.values())
    size = 1
    while size <= largest:
        cut = [a for members in machines.values() for a in _cut(pool, members, size)]
        if cut:
            yield cut
        size *= 2


def _cut(pool: GroupPool, members: Sequence[int], size: int) -> Iterator[DeviceGroup]:
    """Groups of `size`; where one cannot hold a layer, a larger one."""
    at = 0
    while at < len(members):
        group, end = None, at + size - 1
        while group is None and end < len(members):
            end += 1
            group = pool.group(members[at:end])
        if group is not None:
            yield group
        at = max(end, at + 1)


def _most_pipelines(pool: GroupPool, ordered: Sequence[DeviceGroup]) -> int:
    """Pipelines that memory could hold."""
    layers = sum(float(group.layers[0]) for group in ordered)
    return max(1, min(len(ordered), int(layers / pool.problem.model.layers)))


def _counts(most: int, tried: int) -> list[int]:
    """Numbers of pipelines to try: all of them if few, else spread evenly by ratio."""
    if most <= tried:
        return list(range(1, most + 1))
    return sorted({round(most ** (i / (tried - 1))) for i in range(tried)}) if tried > 1 else [1]


def _contiguous(ordered: Sequence[DeviceGroup], count: int) -> tuple[Part, ...]:
    """Neighbours on the tour together, in parts of about equal speed."""
    speeds = [1 / group.seconds[len(group.seconds) // 2] for group in ordered]
    whole, done = sum(speeds), 0.0
    parts: list[list[DeviceGroup]] = [[] for _ in range(count)]
    for group, speed in zip(ordered, speeds, strict=True):
        parts[min(count - 1, int((done + speed / 2) / whole * count))].append(group)
        done += speed
    return tuple(tuple(part) for part in parts if part)


def _mixed(ordered: Sequence[DeviceGroup], count: int) -> tuple[Part, ...]:
    """Every part gets a like mix of groups."""
    by_kind = sorted(ordered, key=lambda group: (group.request_seconds, group.kind))
    return tuple(tuple(by_kind[i::count]) for i in range(count))
