"""Layer balance: how many layers each group of a pipeline serves, for throughput or for latency."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost.cost_model import GROUPS_PER_STAGE, CostModel
from planner.cost.roofline import stage_row_bytes
from planner.problem import Numbers
from planner.search.device_group import BATCHES, SEQUENCES, DeviceGroup
from swarm.plan import Pipeline, Stage

NDBool = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
NDInt = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
HALVINGS = 14
COARSE = 6  # steps of SEQUENCES at once
KEPT = 12  # divisions looked at for distinct ones
TRIED = 1  # most promising divisions that are priced exactly


@dataclass(frozen=True, eq=False, slots=True)
class _Cases:
    """Pairs of sequences held and batch in one pass, as indexes into SEQUENCES and BATCHES."""

    sequences: NDInt
    batches: NDInt

    @classmethod
    def of(cls, held: NDInt, groups: int) -> "_Cases":
        """Every batch that divides the sequences into a sensible number of groups."""
        ratio = SEQUENCES[held][:, None] / BATCHES[None, :]
        rows, batches = np.nonzero((ratio >= 1) & (ratio <= GROUPS_PER_STAGE * groups))
        return cls(held[rows], batches)

    def __getitem__(self, chosen: NDBool) -> "_Cases":
        return _Cases(self.sequences[chosen], self.batches[chosen])


def throughput_layers(cost: CostModel, groups: Sequence[DeviceGroup]) -> list[tuple[int, ...]]:
    """Layers of each group, in that order, for the most promising (sequences, batch) pairs.

    A coarse grid of sequences first, then a fine one around the best of it.
    """
    every = np.arange(len(SEQUENCES))
    coarse = _best_divisions(cost, groups, _Cases.of(every[::COARSE], len(groups)))
    if not coarse:
        return []
    center = max(coarse, key=lambda division: division[0])[1]
    near = every[max(0, center - COARSE + 1) : center + COARSE]
    fine = _best_divisions(cost, groups, _Cases.of(near, len(groups)))
    ranked = sorted(coarse + fine, key=lambda division: -division[0])
    return list(dict.fromkeys(division[2] for division in ranked))[:TRIED]


def _best_divisions(
    cost: CostModel, groups: Sequence[DeviceGroup], cases: _Cases
) -> list[tuple[float, int, tuple[int, ...]]]:
    """The best distinct divisions: promised tokens per second, index of sequences, layers."""
    most = _most(groups)[:, cases.sequences]
    possible = most.sum(axis=0) >= cost.model.layers
    if not possible.any():
        return []
    cases, most = cases[possible], most[:, possible]
    seconds = np.array([group.seconds for group in groups])[:, cases.batches]
    head = np.zeros_like(seconds)
    head[-1] = groups[-1].head_seconds[cases.batches]
    layers = _least_cycle(cost.model.layers, seconds, most, head)
    held, batch = SEQUENCES[cases.sequences], BATCHES[cases.batches]
    times = layers * seconds + np.where(layers > 0, head, 0.0)
    far = _hop_seconds(cost, groups, batch)
    value = held / np.maximum(times.sum(axis=0) + far, held / batch * times.max(axis=0))
    best = np.argsort(-value, kind="stable")[:KEPT]
    return [
        (float(value[k]), int(cases.sequences[k]), tuple(layers[:, k].astype(int).tolist()))
        for k in best
    ]


def _most(groups: Sequence[DeviceGroup]) -> Numbers:
    ends = len(groups) - 1
    return np.array(
        [group.most_layers(first=i == 0, last=i == ends) for i, group in enumerate(groups)]
    )


def _least_cycle(layers: int, seconds: Numbers, most: Numbers, head: Numbers) -> Numbers:
    """Layers of each group (rows) in each case (columns) with the shortest slowest stage."""

    def held(limit: Numbers) -> Numbers:
        return np.clip(np.floor((limit - head) / seconds + 1e-9), 0, most)

    high = (most * seconds + head).max(axis=0)
    low = np.zeros_like(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        met = held(middle).sum(axis=0) >= layers
        low, high = np.where(met, low, middle), np.where(met, middle, high)
    return _without_surplus(layers, held(high), seconds)


def _without_surplus(layers: int, held: Numbers, seconds: Numbers) -> Numbers:
    """Take surplus layers from the stages where that saves the most time."""
    columns = np.arange(held.shape[1])
    while (over := held.sum(axis=0) > layers).any():
        busiest = np.where(held > 0, held * seconds, -1).argmax(axis=0)
        held[busiest[over], columns[over]] -= 1
    return held


def _hop_seconds(cost: CostModel, groups: Sequence[DeviceGroup], batch: Numbers) -> Numbers:
    where = [int(cost.problem.machine_of[group.members[0]]) for group in groups]
    if len(where) == 1:
        return np.zeros_like(batch)
    rows, columns = np.array(where), np.array([*where[1:], where[0]])
    latency = float(cost.problem.latency[rows, columns].sum())
    row = np.array([stage_row_bytes(cost.problem, group.members) for group in groups[:-1]])
    per_row = float((row / cost.problem.bandwidth[rows, columns][:-1]).sum())
    return latency + per_row * batch


def pipeline_of(groups: Sequence[DeviceGroup], layers: Sequence[int]) -> Pipeline:
    """Stages over the groups that hold layers; the others are left out."""
    stages, at = [], 0
    for group, count in zip(groups, layers, strict=True):
        if count:
            stages.append(Stage(at, at + count, group.shards))
            at += count
    return Pipeline(tuple(stages))


def latency_layers(cost: CostModel, groups: Sequence[DeviceGroup]) -> tuple[int, ...]:
    """Layers to the quickest groups first, as far as memory goes, one to each; empty if too few."""
    most = _most(groups)[:, 0]
    left = cost.model.layers - len(groups)
    if most.min() < 1 or most.sum() < cost.model.layers or left < 0:
        return ()
    layers = [1] * len(groups)
    for i in sorted(range(len(groups)), key=lambda i: (groups[i].request_seconds, i)):
        more = min(left, int(most[i]) - 1)
        layers[i] += more
        left -= more
    return tuple(layers)
