"""refined_split: move units between the shards of a stage while its true seconds fall.

The limits of `tensor_split` bound a stage by the greatest sum of a member's prefill and decode
seconds; the true seconds are the sum of the two greatest, which unlike members can lower by a
trade, and so can equal ones of the last stage, whose leader has the head besides.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.cost.criterion import Criterion, stage_seconds
from planner.cost.roofline import speeds_of
from planner.cost.stage_cost import form_stage
from planner.problem import Problem
from swarm.plan import Shard

STEPS = (64, 16, 4, 1)
GAIN = 1e-6  # relative; smaller ones are not worth a move
MOST_MEMBERS = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stage stands: its layers, and whether it holds the ends."""

    layers: int
    first: bool
    last: bool


def true_seconds(
    problem: Problem, criterion: Criterion, place: Place, shards: tuple[Shard, ...]
) -> float:
    """The criterion's seconds of a stage; infinite if it does not fit the memory."""
    form = form_stage(problem, shards, place.layers, first=place.first, last=place.last)
    if form.sequences(problem.workload.context) < criterion.sequences:
        return float("inf")
    return stage_seconds(problem, criterion, form)


def refined_split(
    problem: Problem, criterion: Criterion, place: Place, shards: tuple[Shard, ...]
) -> tuple[Shard, ...]:
    """The shards after every move of KV heads and MLP blocks that lowers the stage's seconds."""
    if len(shards) > MOST_MEMBERS or not (place.last or _is_mixed(problem, shards)):
        return shards
    for step in STEPS:
        while better := _better(problem, criterion, place, shards, step):
            shards = better
    return shards


def _better(
    problem: Problem, criterion: Criterion, place: Place, shards: tuple[Shard, ...], step: int
) -> tuple[Shard, ...]:
    """The first move that lowers the seconds, made; nothing if there is none."""
    best = true_seconds(problem, criterion, place, shards)
    for moved in _moves(problem, shards, step):
        if true_seconds(problem, criterion, place, moved) < best * (1 - GAIN):
            return moved
    return ()


def _is_mixed(problem: Problem, shards: tuple[Shard, ...]) -> bool:
    """Whether members differ in the ratio of arithmetic to reading speed."""
    devices = (problem.devices[problem.index_of[shard.device]] for shard in shards)
    ratios = {round(float(s.flops / s.bytes_per_second), 6) for s in map(speeds_of, devices)}
    return len(ratios) > 1


def _moves(problem: Problem, shards: tuple[Shard, ...], step: int) -> Iterator[tuple[Shard, ...]]:
    """Every single move from one member to another; KV heads move with the finest step."""
    least = problem.model.least_units
    trades = [(0, step)] if step > 1 else [(0, 1), (1, 0), (1, -1), (1, -4), (1, -16)]
    for (i, giver), (j, taker) in itertools.permutations(enumerate(shards), 2):
        for kv, mlp in trades:
            left = (giver.kv - kv, giver.mlp - mlp)
            right = (taker.kv + kv, taker.mlp + mlp)
            if min(*left, *right) < least or 0 in (sum(left), sum(right)):
                continue
            moved = list(shards)
            moved[i] = replace(giver, kv=left[0], mlp=left[1])
            moved[j] = replace(taker, kv=right[0], mlp=right[1])
            yield tuple(moved)
