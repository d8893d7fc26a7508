"""plan_with_stages: pipelines of exactly as many stages as the user asks for.

Devices in order of the tour are cut into groups, one for each stage, within machines where that
divides them about evenly; then single devices change groups while the value rises.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost.feasibility import needed_bytes, require_room
from planner.problem import Numbers
from planner.search.group_pool import GroupPool
from planner.stop import StopRule
from swarm.plan import Pipeline, Plan

Groups = tuple[tuple[int, ...], ...]  # the devices of every stage; spares come last


def plan_with_stages(
    pool: GroupPool, objective: str, stages: int, stop: StopRule, seed: int
) -> Plan:
    """The best plan found whose pipelines have that many stages each; empty if none fits.

    Raises DoesNotFit, with the missing bytes, if all memory together is too small.
    """
    require_room(pool.problem)
    if objective == "latency":
        return Plan(tuple(_one_by_one(pool, stages, stop, seed)))
    best: tuple[float, list[Pipeline]] = (0.0, [])
    for count in range(1, max(1, len(pool.devices) // stages) + 1):
        runs = _runs(pool, pool.devices, count)
        searches = [_StageCountSearch(_only(pool, run), objective, stages) for run in runs]
        found = [search.best(stop, seed) for search in searches]
        made = [pipeline for pipeline in found if pipeline is not None]
        value = sum(pool.cost.throughput(pipeline) for pipeline in made)
        best = max(best, (value, made), key=lambda pair: pair[0])
        if len(made) < count or (made and stop(-best[0])):
            break
    return Plan(tuple(best[1]))


def _one_by_one(pool: GroupPool, stages: int, stop: StopRule, seed: int) -> Iterator[Pipeline]:
    """The quickest pipeline, then the quickest of what is left, while there is one."""
    while len(pool.devices) >= stages:
        pipeline = _StageCountSearch(pool, "latency", stages).best(stop, seed)
        if pipeline is None:
            return
        yield pipeline
        pool = pool.without(s.device for stage in pipeline.stages for s in stage.shards)


def _only(pool: GroupPool, devices: Sequence[int]) -> GroupPool:
    """A pool of these devices alone."""
    others = set(pool.devices) - set(devices)
    return pool.without(pool.problem.devices[d].id for d in others)


@dataclass(frozen=True, eq=False, slots=True)
class _StageCountSearch:
    """What groups are worth as one pipeline of so many stages."""

    pool: GroupPool
    objective: str
    stages: int

    def value(self, groups: Groups) -> float:
        """The value of all groups but the spares; 0 if one of them would serve no layer."""
        device_groups = [self.pool.group(group) for group in groups[:-1]]
        usable = [found for found in device_groups if found is not None]
        if len(usable) < self.stages:
            return 0.0
        best = self.pool.evaluate(usable, self.objective)
        return best.value if min(best.layers, default=0) > 0 else 0.0

    def best(self, stop: StopRule, seed: int) -> Pipeline | None:
        """The best pipeline found over the pool's devices; some may be spares."""
        runs = [_ordered(self.pool, self.pool.devices), *_prefixes(self.pool)]
        starts = {_cut(self.pool, run, self.stages) for run in runs if len(run) >= self.stages}
        kept = self.pool.params.stage_count.starts_kept
        ranked = sorted(starts, key=lambda groups: (-self.value(groups), groups))[:kept]
        draw = random.Random(seed)
        found = [self.improve(groups, stop, draw) for groups in ranked]
        chosen = max(found, key=self.value, default=())
        if not chosen or not self.value(chosen):
            return None
        device_groups = [self.pool.group(group) for group in chosen[:-1]]
        return self.pool.build(
            [found for found in device_groups if found is not None],
            self.objective,
        )

    def improve(self, groups: Groups, stop: StopRule, draw: random.Random) -> Groups:
        """The groups after changes of single devices that raise the value."""
        value, failures = self.value(groups), 0
        while failures < self.pool.params.stage_count.patience and not (value and stop(-value)):
            failures += 1
            changed = _random_move(groups, draw)
            if changed is not None and (more := self.value(changed)) > value:
                groups, value, failures = changed, more, 0
        return groups


def _random_move(groups: Groups, draw: random.Random) -> Groups | None:
    """One device goes from a group (or the spares, the last) to another, or two change places."""
    i, j = draw.sample(range(len(groups)), 2)
    gone = draw.sample(groups[i], 1) if groups[i] else []
    back = draw.sample(groups[j], 1) if groups[j] and draw.random() < 0.5 else []
    changed = list(groups)
    changed[i] = tuple(sorted({*groups[i], *back} - {*gone}))
    changed[j] = tuple(sorted({*groups[j], *gone} - {*back}))
    return tuple(changed) if all(changed[:-1]) else None


def _ordered(pool: GroupPool, devices: Sequence[int]) -> list[int]:
    """Devices along the tour, those of one machine together."""
    where = pool.problem.machine_of
    return sorted(devices, key=lambda d: (pool.tour_position(int(where[d])), d))


def _runs(pool: GroupPool, devices: Sequence[int], count: int) -> list[list[int]]:
    """Devices along the tour in so many runs of about equal memory."""
    ordered = _ordered(pool, devices)
    memory = np.array([pool.problem.devices[d].memory_bytes for d in ordered])
    middle = np.cumsum(memory) - memory / 2
    number = np.minimum((middle / memory.sum() * count).astype(int), count - 1)
    return [[d for d, n in zip(ordered, number, strict=True) if n == run] for run in range(count)]


def _prefixes(pool: GroupPool) -> Iterator[list[int]]:
    """Machines by reading speed, and by distance from each of the fastest, that hold the model."""
    where, problem = pool.problem.machine_of, pool.problem
    machines = sorted({int(where[d]) for d in pool.devices}, key=pool.read_speed, reverse=True)
    orders = [machines]
    for first in machines[: pool.params.stage_count.starts_kept]:
        orders.append(sorted(machines, key=lambda m: (m != first, problem.latency[first, m])))
    for order in orders:
        taken: list[int] = []
        for machine in order[: pool.params.stage_count.starts]:
            taken += [d for d in pool.devices if where[d] == machine]
            if sum(problem.devices[d].memory_bytes for d in taken) >= needed_bytes(problem):
                yield _ordered(pool, taken)


def _cut(pool: GroupPool, run: Sequence[int], stages: int) -> Groups:
    """The run in so many groups, as even in speed as not crossing far machines allows."""
    problem = pool.problem
    speeds = np.array([problem.devices[d].bytes_per_second for d in run])
    edges = np.concatenate([[0.0], np.cumsum(speeds) / speeds.sum()])
    uneven = (edges[None, :] - edges[:, None] - 1 / stages) ** 2
    penalty = np.where(
        np.triu(np.ones_like(uneven), 1) > 0, uneven + _far_penalties(pool, run), np.inf
    )
    best, froms = np.where(np.arange(len(edges)) == 0, 0.0, np.inf), []
    for _ in range(stages):
        reached = best[:, None] + penalty
        froms.append(reached.argmin(axis=0))
        best = reached.min(axis=0)
    groups, end = list[tuple[int, ...]](), len(run)
    for begins in reversed(froms):
        begin = int(begins[end])
        groups.insert(0, tuple(sorted(run[begin:end])))
        end = begin
    idle = tuple(sorted(set(pool.devices) - set(run)))
    return (*groups, idle)


def _far_penalties(pool: GroupPool, run: Sequence[int]) -> Numbers:
    """The penalty of every group `[row, column)` of the run that spans far machines."""
    where = pool.problem.machine_of[list(run)]
    breaks = pool.problem.latency[where[:-1], where[1:]] > pool.params.local.near_seconds
    crossed = np.concatenate([[0], np.cumsum((where[:-1] != where[1:]) * (0.1 + breaks))])
    penalty: Numbers = np.zeros((len(run) + 1, len(run) + 1))
    penalty[:-1, 1:] = pool.params.stage_count.far_penalty * np.maximum(
        crossed[None, :] - crossed[:, None], 0.0
    )
    return penalty
