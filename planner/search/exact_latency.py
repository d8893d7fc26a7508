"""Exact pipelines for few devices: tables of all groups, then dynamic programming over chains."""

import numpy as np

from planner.cost.cost_model import CostModel
from planner.cost.criterion import Criterion, latency_criterion
from planner.cost.roofline import TOKEN_BYTES, stage_row_bytes
from planner.device_classes import Classes, Counts, classes_of
from planner.problem import Numbers, Problem
from planner.search.chain_dp import Chains, Link, best_chain
from planner.search.stage_table import (
    Row,
    Tables,
    floor_seconds,
    row_of,
    with_leader_first,
    with_true_seconds,
)
from planner.search.tensor_split import SLACK, StageMembers, best_split
from planner.search.tensor_split_polish import Place, refined_split, true_seconds
from planner.search_params import DEFAULT_PARAMS, LatencyParams
from swarm.plan import Pipeline, Stage


def is_small(classes: Classes, params: LatencyParams) -> bool:
    """Whether exact search takes on devices of these classes."""
    return classes.states <= params.most_states


def least_latency_pipeline(
    problem: Problem,
    devices: list[int],
    limit: float = np.inf,
    *,
    is_local: bool = False,
    tables: Tables | None = None,
    params: LatencyParams = DEFAULT_PARAMS.latency,
) -> Pipeline | None:
    """The pipeline over some of the devices with the least seconds of one request, if any fits.

    Exact over order, groups and layers; shares are exact for the greatest sum of a member's
    prefill and decode seconds. Only pipelines below `limit` seconds are looked for, and with
    `is_local` only groups within machines. `tables` remember groups from one call to the next.
    """
    if not devices:
        return None
    classes = classes_of(problem, devices)
    tables = tables or Tables(problem, latency_criterion(problem))
    return _ExactSearch(classes, tables, params).solve(limit, is_local=is_local)


class _ExactSearch:
    """One search: groups inside a machine first, then those across machines that may pay."""

    def __init__(self, classes: Classes, tables: Tables, params: LatencyParams) -> None:
        problem, criterion = tables.problem, tables.criterion
        self.problem, self.classes, self.criterion = problem, classes, criterion
        self.tables, self.params = tables, params
        self.rows: dict[Counts, Row] = {}
        self.floors = {
            counts: floor_seconds(problem, criterion, self.members(counts))
            for counts in classes.groups()
        }
        self.floor = min(self.floors.values())
        model, few = problem.model, sum(classes.counts) <= params.few_devices
        small = classes.states <= params.few_states
        whole = sum(classes.counts)
        self.most_members = whole if few or small else params.most_far_members
        self.layer_bytes = model.layer_bytes + model.kv_bytes * problem.workload.context
        self.is_small = few and small

    def members(self, counts: Counts) -> tuple[int, ...]:
        return tuple(self.classes.pick(counts, (0,) * len(counts)))

    def local(self) -> list[Counts]:
        """Groups within one machine."""
        where = self.problem.machine_of
        return [
            g
            for g in self.floors
            if sum(g) <= self.params.few_devices
            and len({int(where[m]) for m in self.members(g)}) == 1
        ]

    def worth_trying(self, limit: float) -> list[Counts]:
        """Groups that could serve one layer of a pipeline below the limit."""
        rest = (self.problem.model.layers - 1) * self.floor
        near = [counts for counts, floor in self.floors.items() if floor + rest < limit]
        return [counts for counts in near if self.may_pay(counts)]

    def may_pay(self, counts: Counts) -> bool:
        """Whether a group beats its own parts, one in each machine, as stages of their own.

        In small pools every group is tried. Else it cannot if a layer takes it longer than its
        slowest part, unless a part is too small for one layer: the parts hold the same bytes and
        their hop costs less than its all-reduces.
        """
        members = self.members(counts)
        parts: dict[int, list[int]] = {}
        for member in members:
            parts.setdefault(int(self.problem.machine_of[member]), []).append(member)
        if len(parts) == 1:
            return True
        if len(members) > self.most_members or self.is_small:
            return self.is_small
        floors = [floor_seconds(self.problem, self.criterion, tuple(p)) for p in parts.values()]
        memory = [sum(self.problem.devices[m].memory_bytes for m in p) for p in parts.values()]
        return self.floors[counts] < max(floors) or min(memory) < self.layer_bytes

    def solve(self, limit: float, *, is_local: bool) -> Pipeline | None:
        """Search everywhere until the tables agree with the true seconds of the chain found."""
        found: tuple[float, Pipeline | None] = (limit, None)
        links = self.best_links(self.local(), limit)[1]
        for _ in range(self.params.most_corrections):
            if links:
                pipeline = pipeline_of(self.problem, self.classes, self.criterion, links)
                seconds = CostModel(self.problem).latency(pipeline)
                found = min(found, (seconds, pipeline), key=lambda pair: pair[0])
                self.correct(links, pipeline)
            groups = self.local() if is_local else self.worth_trying(found[0])
            links = self.best_links(groups, found[0] * (1 - SLACK))[1]
            if not links:
                break
        return found[1]

    def correct(self, links: list[Link], pipeline: Pipeline) -> None:
        """Write the true seconds of a chain's stages into the tables."""
        for link, stage in zip(links, pipeline.stages, strict=True):
            place = Place(link.layers, stage is pipeline.stages[0], stage is pipeline.stages[-1])
            seconds = true_seconds(self.problem, self.criterion, place, stage.shards)
            self.rows[link.row.counts] = with_true_seconds(
                self.rows[link.row.counts], place, seconds
            )

    def best_links(self, groups: list[Counts], limit: float) -> tuple[float, list[Link]]:
        """The best chain below the limit over the given groups."""
        for counts in groups:
            if counts not in self.rows:
                self.rows[counts] = row_of(self.tables, self.classes, counts)
        rows = [row for counts in groups if (row := self.rows[counts]).is_possible]
        if not rows:
            return limit, []
        hops = hop_seconds(self.problem, self.classes, self.criterion, rows)
        backs = back_seconds(self.problem, self.classes, self.criterion, rows)
        found = best_chain(Chains(self.classes, rows, hops, backs, self.floor), limit)
        return found if found[1] else (limit, [])


def hop_seconds(
    problem: Problem, classes: Classes, criterion: Criterion, rows: list[Row]
) -> Numbers:
    """The criterion's seconds of activations from every row's group to every other's."""
    sizes = np.array([stage_row_bytes(problem, row.members) for row in rows])
    prompt = _best_link(problem, classes, rows, problem.workload.input_tokens * sizes)
    step = _best_link(problem, classes, rows, criterion.batch * sizes)
    return criterion.prefill_weight * prompt + criterion.decode_weight * step


def back_seconds(
    problem: Problem, classes: Classes, criterion: Criterion, rows: list[Row]
) -> Numbers:
    """The criterion's seconds of sampled tokens on their way back to the first stage."""
    weight = criterion.prefill_weight + criterion.decode_weight
    return weight * _best_link(problem, classes, rows, np.full(len(rows), TOKEN_BYTES))


def _best_link(problem: Problem, classes: Classes, rows: list[Row], sizes: Numbers) -> Numbers:
    """Seconds of what each row's group sends, over its best way to every other: [from, to]."""
    latency, bandwidth = classes.links(problem)
    sets = [np.flatnonzero(row.counts) for row in rows]
    leaving = np.array(
        [
            (latency[a] + size / bandwidth[a]).min(axis=0)
            for a, size in zip(sets, sizes, strict=True)
        ]
    )
    return np.array([leaving[:, b].min(axis=1) for b in sets]).T


def pipeline_of(
    problem: Problem, classes: Classes, criterion: Criterion, links: list[Link]
) -> Pipeline:
    """Name the devices of a chain and deal out their shares."""
    taken = np.zeros(len(classes.counts), dtype=np.int64)
    stages: list[Stage] = []
    at = 0
    for link in links:
        first, last = link is links[0], link is links[-1]
        members = tuple(classes.pick(link.row.counts, tuple(taken.tolist())))
        leader = members[link.row.members.index(link.row.leader(Place(link.layers, first, last)))]
        group = StageMembers(with_leader_first(members, leader), first, last)
        shards = best_split(problem, group, criterion, link.layers)
        shards = refined_split(problem, criterion, Place(link.layers, first, last), shards)
        stages.append(Stage(at, at + link.layers, shards))
        taken += link.row.counts
        at += link.layers
    return Pipeline(tuple(stages))
