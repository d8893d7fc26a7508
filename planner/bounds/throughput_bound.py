"""Throughput bound: capped layer-flow for every count of devices, and the best way to divide them.

The best pipeline over each count of devices is bounded on its own; the bound of a plan is the
best sum over divisions of all devices. Counts that cannot be part of a plan better than the one
at hand are not looked at closer.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.bounds.device_counts import device_counts_of
from planner.bounds.device_rates import kinds_of
from planner.bounds.dual_values import DualValues, dual_values_of
from planner.bounds.flow_boxes import FlowBoxes, NDBool, concatenate, first_boxes
from planner.bounds.group_rates import GroupRates, group_rates_of
from planner.bounds.layer_flow_bound import Bound, highest_flow, layer_flow_bound, most_pipelines
from planner.cost.feasibility import needed_bytes
from planner.cost.roofline import least_row_bytes
from planner.problem import Numbers, Problem
from planner.stop import StopRule, never

Places = NDArray[np.int64]
MOST_COUNTS = 25_000  # device counts told apart; for more the bound is not computed
MOST_CLASSES = 12
ROUNDS = ((1.5, 1.6), (1.2, 1.3), (1.08, 1.12), (1.03, 1.06), (1.012, 1.03), (1.006, 1.02))
ROUNDS_OF_MANY = ((1.1, 1.1), (1.03, 1.05))  # for so many counts that rough rounds do not pay
MANY_COUNTS = 5000
WORTH_PROVING = 1.003  # times the value at hand
NEAR = 1.05  # times the value at hand: no closer bound is looked for
MOST_WORK = 9_000_000  # boxes times groups, so that large pools end, too
SOME_WORK = 2_000_000  # after which a bound that is near suffices
COUNTS_PER_GROUP = 16  # that cost as much work as one group
BOXES_AT_ONCE = 400
SLACK = 1e-9
LEAST = 1e-4  # of the highest flow: slower pipelines are taken to reach it


def throughput_bound(problem: Problem, value: float, stop: StopRule = never) -> Bound:
    """No plan makes more output tokens per second; `value` is that of the plan at hand.

    The least of the bounds that are worth their work: that over device counts only if the quick
    one is far from the value. When `stop` says so the bound is left as close as it is.
    """
    quick = layer_flow_bound(problem)
    if quick.value <= value * NEAR:
        return quick
    counted = device_count_bound(problem, value, highest_flow(problem), stop)
    if counted is None or counted >= quick.value:
        return quick
    return Bound(counted, "capped layer-flow, counted")


def device_count_bound(
    problem: Problem, value: float, above: float, stop: StopRule = never
) -> float | None:
    """A bound on the tokens/s of any plan, given the value of one.

    `above` bounds the tokens/s of one pipeline. None if there are too many counts of devices.
    """
    if len(kinds_of(problem)) > MOST_CLASSES:
        return None
    available = device_counts_of(problem)
    if available.ways > MOST_COUNTS:
        available = available.merged()
    if available.ways > MOST_COUNTS:
        return None
    return _CountBounds(group_rates_of(problem, available), above, stop).bound(
        value * WORTH_PROVING
    )


@dataclass(frozen=True, eq=False, slots=True)
class _Ways:
    """Seconds that each count's hops take beyond the best ones: fixed, and for each byte."""

    fixed: Numbers
    per_byte: Numbers


class _CountBounds:
    """Bounds of one pipeline over every count of devices, lowered round by round."""

    def __init__(self, groups: GroupRates, above: float, stop: StopRule) -> None:
        self.groups, self.stop = groups, stop
        each = (range(count + 1) for count in groups.available.counts)
        self.counts = np.array(list(itertools.product(*each)), dtype=float)
        self.ways = _ways(groups, self.counts)
        self.flows = np.where(_may_hold(groups, self.counts), above, 0.0)
        self.least = LEAST * above
        self.work = 0
        devices = int(sum(groups.available.counts))
        self.stages = min(groups.problem.model.layers, devices)

    def bound(self, target: float) -> float:
        """The bound after all rounds, or `target` once no plan can exceed it."""
        best, near = np.inf, target / WORTH_PROVING * NEAR
        rounds = ROUNDS_OF_MANY if len(self.counts) > MANY_COUNTS else ROUNDS
        for flow_ratio, ratio in rounds:
            together = best_sums(self.groups, self.flows)
            best = min(best, float(together[-1]))
            if best <= target or (self.work > SOME_WORK and best <= near):
                break
            self._lower(target - together[::-1], flow_ratio, ratio)
        return min(best, float(best_sums(self.groups, self.flows)[-1]))

    def _lower(self, useless: Numbers, flow_ratio: float, ratio: float) -> None:
        """Lower the flow of every count until it is useless, or a box may reach it."""
        useless = np.maximum(useless, self.least)
        open_ = self.flows > useless * (1 + SLACK)
        while open_.any():
            high = float(self.flows[open_].max())
            low = high / flow_ratio
            now = open_ & (self.flows > low)
            numbers = np.flatnonzero(now)
            reached = self._reached(numbers, (low, high), ratio)
            open_[numbers[reached]] = False
            rest = numbers[~reached]
            self.flows[rest] = np.minimum(self.flows[rest], low)
            open_ &= self.flows > useless * (1 + SLACK)

    def _reached(self, numbers: Places, flow: tuple[float, float], ratio: float) -> NDBool:
        """Which counts may serve a pipeline of that flow, in some box of fine enough ranges."""
        reached = np.zeros(len(numbers), dtype=bool)
        boxes = first_boxes(flow, self.stages)
        while len(boxes) and not reached.all():
            if self.work > MOST_WORK or self.stop(-float(self.flows[-1])):
                return np.ones_like(reached)
            now, later = (
                boxes.select(slice(0, BOXES_AT_ONCE)),
                boxes.select(slice(BOXES_AT_ONCE, None)),
            )
            left = numbers[~reached]
            self.work += len(now) * (len(self.groups.counts) + len(left) // COUNTS_PER_GROUP)
            serves = self._serves(dual_values_of(self.groups, now), now, left)
            fine = now.are_fine(ratio)
            got = serves[fine].any(axis=0)
            reached[np.flatnonzero(~reached)[got]] = True
            boxes = concatenate(now.select(serves[:, ~got].any(axis=1) & ~fine).halves(), later)
        return reached

    def _serves(self, duals: DualValues, boxes: FlowBoxes, numbers: Places) -> NDBool:
        """Whether counts meet the conditions of boxes: [box, count]."""
        counts = self.counts[numbers]
        size = least_row_bytes(self.groups.problem) * boxes.least_batch
        way = self.ways.fixed[numbers] + np.multiply.outer(size, self.ways.per_byte[numbers])
        serves = np.ones((len(boxes), len(numbers)), dtype=bool)
        for dual, need, per_hop_second in zip(
            duals.duals, duals.need, duals.per_hop_second, strict=True
        ):
            serves &= dual @ counts.T >= (need[:, None] + per_hop_second[:, None] * way) * (
                1 - SLACK
            )
        for group in np.flatnonzero(duals.alone.any(axis=0)):
            inside = (counts >= self.groups.counts[group]).all(axis=1)
            serves |= np.logical_and.outer(duals.alone[:, group], inside)
        return serves


def _may_hold(groups: GroupRates, counts: Numbers) -> NDBool:
    """Whether the memory of each count suffices for the model and one sequence."""
    memory = counts @ np.array([kind.memory for kind in groups.available.kinds])
    enough: NDBool = memory >= needed_bytes(groups.problem) * (1 - SLACK)
    return enough


def _ways(groups: GroupRates, counts: Numbers) -> _Ways:
    """The ways out of every region that has devices, if there are two such regions."""
    latency, per_byte = groups.region_links.beyond
    regions = np.array(groups.available.regions)
    names = sorted(set(groups.available.regions))
    used = np.array([(counts[:, regions == name] > 0).any(axis=1) for name in names]).T
    several = used.sum(axis=1) > 1
    bytes_each = used * per_byte
    return _Ways(
        np.where(several, used @ latency, 0.0),
        np.where(several, bytes_each.sum(axis=1) - bytes_each.max(axis=1), 0.0),
    )


def best_sums(groups: GroupRates, flows: Numbers) -> Numbers:
    """The largest sum of flows over divisions of each count."""
    shape = [count + 1 for count in groups.available.counts]
    best = flows.reshape(shape)
    for axis in range(len(shape)):
        best = np.maximum.accumulate(best, axis=axis)
    pipelines = 1
    while pipelines < most_pipelines(groups.problem):
        best, pipelines = _both(best), 2 * pipelines
    return best.ravel()


def _both(flows: Numbers) -> Numbers:
    """The largest sum of two entries whose counts sum to each count: [count of class, ...]."""
    best = flows.copy()
    for place in np.argwhere(flows > 0):
        above = tuple(slice(at, None) for at in place)
        rest = tuple(slice(0, size - at) for at, size in zip(place, flows.shape, strict=True))
        np.maximum(best[above], flows[rest] + flows[tuple(place)], out=best[above])
    return best
