"""HexGen as the paper describes it: dynamic programming inside, genetic search outside.

Jiang et al., ICML 2024, sections 4.1 and 4.2. A chromosome is a partition of the devices into
groups; each group becomes one pipeline by dynamic programming over device counts, with even
tensor-parallel shares inside a machine; groups merge, split and swap. Our own search differs by
uneven shares, groups over machines and balanced layers (`local_search.py`, `exact_latency.py`).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from planner.cost.criterion import Criterion, latency_criterion
from planner.cost.feasibility import needed_bytes
from planner.device_classes import Classes, classes_of
from planner.problem import Numbers
from planner.search.chain_dp import Chains, Link, best_chain
from planner.search.device_group import DeviceGroup, even_shards, group_with_shards
from planner.search.exact_latency import back_seconds, hop_seconds
from planner.search.group_pool import GroupPool, value_of
from planner.search.stage_table import Row
from planner.stop import StopRule
from swarm.plan import Pipeline, Plan, Stage

Groups = tuple[tuple[int, ...], ...]


class Rules(Protocol):
    """The cost model that the search asks: the paper's own or the reference one."""

    @property
    def returns_token(self) -> bool:
        """Whether the sampled token's way back to the first stage counts."""

    @property
    def criterion(self) -> Criterion:
        """How often hops are paid in prefill and in decode."""

    def group(self, members: tuple[int, ...]) -> DeviceGroup | None:
        """A group with even shares; None if it cannot be divided so."""

    def value(self, pipeline: Pipeline, objective: str) -> float:
        """What a pipeline is worth; 0 if it does not fit."""


@dataclass(frozen=True, eq=False, slots=True)
class ReferenceRules:
    """Prices by the reference cost model, so that all searches are compared by one evaluator."""

    pool: GroupPool
    returns_token: bool = True

    @property
    def criterion(self) -> Criterion:
        """One request alone."""
        return latency_criterion(self.pool.problem)

    def group(self, members: tuple[int, ...]) -> DeviceGroup | None:
        """The group with even shares."""
        shards = even_shards(self.pool.problem, members)
        return group_with_shards(self.pool.problem, members, shards, -1) if shards else None

    def value(self, pipeline: Pipeline, objective: str) -> float:
        """Tokens per second, or requests alone per second."""
        return value_of(self.pool.cost, pipeline, objective)


class HexGen:
    """One run of the paper's search over the devices of a pool."""

    def __init__(
        self,
        pool: GroupPool,
        objective: str,
        seed: int,
        rules: Rules | None = None,
        most_work: float = math.inf,
    ) -> None:
        self.pool, self.params = pool, pool.params.hexgen
        self.most_work = most_work
        self.work = 0  # states times groups of all inner searches: the cost, without a clock
        self.rules = rules or ReferenceRules(pool)
        self.problem = pool.problem
        self.objective = objective
        self.draw = random.Random(seed)
        self._pipelines: dict[tuple[int, ...], Pipeline | None] = {}
        self._values: dict[tuple[tuple[int, ...], ...], tuple[float, list[Link]]] = {}

    # ---- outer: genetic search (section 4.2)

    def plan(self, stop: StopRule) -> Plan:
        """The best plan after the population no longer improves or the stop rule says so."""
        population, best = [self.start(1)], 0.0
        for count in range(2, self.params.population + 1):
            best = max(map(self.fitness, population))
            if self.work < self.most_work and not stop(-best):
                population.append(self.start(count))
        best, quiet = max(map(self.fitness, population)), 0
        for _ in range(self.params.generations):
            if quiet >= self.params.patience or self.work >= self.most_work or stop(-best):
                break
            children = [
                self.mutate(self.draw.choice(population)) for _ in range(self.params.population)
            ]
            healthy = [child for child in children if self.may_hold(child)]
            ranked = sorted({*population, *healthy}, key=lambda g: (-self.fitness(g), g))
            population = ranked[: self.params.population]
            quiet = quiet + 1 if self.fitness(population[0]) <= best else 0
            best = max(best, self.fitness(population[0]))
        built = [self.pipeline(group) for group in max(population, key=self.fitness)]
        return Plan(tuple(pipeline for pipeline in built if pipeline))

    def fitness(self, groups: Groups) -> float:
        """The objective's value over all groups."""
        values = [self.value(group) for group in groups]
        return max(values) if self.objective == "latency" else sum(values)

    def value(self, group: tuple[int, ...]) -> float:
        """What the group is worth as one pipeline."""
        pipeline = self.pipeline(group)
        return self.rules.value(pipeline, self.objective) if pipeline else 0.0

    def start(self, count: int) -> Groups:
        """k-means of devices by their links, then groups that can hold the model."""
        clusters = k_means(self.link_rows(), min(count, len(self.pool.devices)), self.draw)
        groups: list[tuple[int, ...]] = []
        for number in sorted(set(clusters)):
            members = [d for d, c in zip(self.pool.devices, clusters, strict=True) if c == number]
            groups += self.groups_that_hold_the_model(members)
        return tuple(groups)

    def link_rows(self) -> Numbers:
        """Every device's latencies to all others."""
        machines = self.problem.machine_of[list(self.pool.devices)]
        rows: Numbers = np.log10(1e-6 + self.problem.latency[np.ix_(machines, machines)])
        return rows

    def groups_that_hold_the_model(self, members: Sequence[int]) -> list[tuple[int, ...]]:
        """Members in turn into groups that just hold the model; what is left joins the last."""
        groups: list[list[int]] = [[]]
        for device in members:
            groups[-1].append(device)
            if self.may_hold((tuple(groups[-1]),)):
                groups.append([])
        if len(groups) > 1 and not self.may_hold((tuple(groups[-1]),)):
            last = groups.pop()
            groups[-1] += last
        return [tuple(group) for group in groups]

    def may_hold(self, groups: Groups) -> bool:
        """The early memory cut: every group's memory in sum holds the model."""
        need, devices = needed_bytes(self.problem), self.problem.devices
        return all(sum(devices[d].memory_bytes for d in group) >= need for group in groups)

    def mutate(self, groups: Groups) -> Groups:
        """Merge two groups, split one, or swap devices between two."""
        kind = self.draw.choice(("merge", "split", "swap") if len(groups) > 1 else ("split",))
        i, j = self.draw.sample(range(len(groups)), 2) if len(groups) > 1 else (0, 0)
        rest = [group for n, group in enumerate(groups) if n not in (i, j)]
        if kind == "merge":
            return (*rest, tuple(sorted(groups[i] + groups[j])))
        if kind == "split":
            rest = [group for n, group in enumerate(groups) if n != i]
            return (*rest, *self.halves(groups[i]))
        return (*rest, *self.swap(groups[i], groups[j]))

    def halves(self, group: tuple[int, ...]) -> Groups:
        """The group cut in two at a random place."""
        if len(group) < 2:
            return (group,)
        at = self.draw.randint(1, len(group) - 1)
        return group[:at], group[at:]

    def swap(self, a: tuple[int, ...], b: tuple[int, ...]) -> Groups:
        """Up to as many devices of each group as the smaller has change places."""
        count = self.draw.randint(1, min(len(a), len(b)))
        out, back = set(self.draw.sample(a, count)), set(self.draw.sample(b, count))
        return tuple(sorted((set(a) - out) | back)), tuple(sorted((set(b) - back) | out))

    # ---- inner: dynamic programming over device counts (section 4.1)

    def pipeline(self, group: tuple[int, ...]) -> Pipeline | None:
        """The group's pipeline with the least latency, remembered."""
        if group not in self._pipelines:
            self._pipelines[group] = self._solve(group) if self.may_hold((group,)) else None
        return self._pipelines[group]

    def _solve(self, group: tuple[int, ...]) -> Pipeline | None:
        classes = classes_of(self.problem, group)
        if classes.states > self.params.most_states:
            return None
        rows, device_groups = self._rows(classes)
        self.work += classes.states * max(1, len(rows)) ** 2
        if not rows:
            return None
        criterion = self.rules.criterion
        hops = hop_seconds(self.problem, classes, criterion, rows)
        backs = back_seconds(self.problem, classes, criterion, rows)
        backs = backs if self.rules.returns_token else 0 * backs
        floor = min(device_group.request_seconds for device_group in device_groups)
        links = best_chain(Chains(classes, rows, hops, backs, floor))[1]
        return self._pipeline_over(classes, links) if links else None

    def _rows(self, classes: Classes) -> tuple[list[Row], list[DeviceGroup]]:
        """Tensor-parallel groups of 1, 2, 4, 8 equal devices of one machine."""
        rows, device_groups = [], []
        for number, members in enumerate(classes.members):
            for degree in self.params.degrees:
                chosen = members[:degree]
                if len(chosen) < degree or len(set(self.problem.machine_of[list(chosen)])) > 1:
                    break
                device_group = self.rules.group(chosen)
                if device_group is not None:
                    counts = tuple(degree * (n == number) for n in range(len(classes.members)))
                    device_groups.append(device_group)
                    rows.append(self._row(counts, device_group))
        return rows, device_groups

    def _row(self, counts: tuple[int, ...], device_group: DeviceGroup) -> Row:
        layers = np.arange(0.0, self.problem.model.layers + 1)

        def seconds(most: float, head: float) -> Numbers:
            fits = (layers > 0) & (layers <= most)
            return np.where(fits, layers * device_group.request_seconds + head, np.inf)

        head = device_group.head_request_seconds
        return Row(
            counts,
            device_group.members,
            device_group.members[:1],
            seconds(device_group.layers[0], 0.0),
            seconds(device_group.first_layers[0], 0.0)[None, :],
            seconds(device_group.last_layers[0], head)[None, :],
            seconds(device_group.only_layers[0], head)[None, :],
        )

    def _pipeline_over(self, classes: Classes, links: Sequence[Link]) -> Pipeline:
        taken = np.zeros(len(classes.counts), dtype=np.int64)
        stages, at = [], 0
        for link in links:
            members = classes.pick(link.row.counts, tuple(taken.tolist()))
            stages.append(Stage(at, at + link.layers, even_shards(self.problem, members)))
            taken += link.row.counts
            at += link.layers
        return Pipeline(tuple(stages))


def hexgen_start(pool: GroupPool, objective: str, stop: StopRule) -> Plan:
    """HexGen's plan after so much work as a start of a longer search may cost: about 0.4 s.

    That is all of its search on a dozen devices and less than its first population on 58; nothing
    where devices are so many that the clustering alone would cost more.
    """
    if len(pool.devices) > pool.params.hexgen.most_devices_to_start:
        return Plan(())
    return HexGen(pool, objective, 0, most_work=pool.params.hexgen.work_to_start).plan(stop)


def k_means(rows: Numbers, count: int, draw: random.Random, rounds: int = 20) -> list[int]:
    """The cluster of every row after Lloyd's rounds from randomly drawn centres."""
    centres = rows[sorted(draw.sample(range(len(rows)), count))]
    nearest = np.zeros(len(rows), dtype=np.int64)
    for _ in range(rounds):
        distance = ((rows[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)
        nearest = distance.argmin(axis=1)
        for number in set(nearest.tolist()):
            centres[number] = rows[nearest == number].mean(axis=0)
    return [int(cluster) for cluster in nearest]
