"""Layer floor: seconds that one layer of one request takes at least, on a device or in a group."""

import heapq
from collections.abc import Sequence

from planner.problem import Problem

LARGEST_GROUP = 16  # larger tensor-parallel groups are taken to cost only their all-reduce
Speeds = tuple[float, float]  # bytes/s and FLOP/s, efficiency included
Link = tuple[float, float]  # latency and bandwidth


def loads(problem: Problem) -> tuple[tuple[float, float], tuple[float, float]]:
    """Bytes and FLOP of one layer for (all decode steps, the prefill) of one request."""
    model, load = problem.model, problem.workload
    steps, prompt = load.output_tokens - 1, load.input_tokens
    square = 2.0 * prompt**2 * model.hidden
    decode = (
        steps * (model.layer_bytes + load.mean_context * model.kv_bytes),
        steps * 2 * model.layer_parameters,
    )
    prefill = (
        model.layer_bytes + prompt * model.kv_bytes,
        2 * prompt * model.layer_parameters + square,
    )
    return decode, prefill


def alone_seconds(problem: Problem, speeds: Speeds) -> float:
    """Seconds of a layer on a device of its own."""
    return sum(max(size / speeds[0], flop / speeds[1]) for size, flop in loads(problem))


def shared_seconds(problem: Problem, speeds: Speeds) -> float:
    """Least seconds of a layer on a group of those summed speeds, however it shares."""
    decode, prefill = loads(problem)
    return max((decode[0] + prefill[0]) / speeds[0], (decode[1] + prefill[1]) / speeds[1])


def allreduce_seconds(problem: Problem, link: Link, members: int) -> float:
    """Seconds of a layer's all-reduces for one request over a link no worse than the group's."""
    row, load = 2.0 * problem.model.hidden, problem.workload

    def once(size: float) -> float:
        ring = 2 * (members - 1) * (link[0] + size / (members * link[1]))
        return min(ring, link[0] + (members - 1) * size / link[1])

    return 2 * (once(load.input_tokens * row) + (load.output_tokens - 1) * once(row))


def group_floors(
    problem: Problem, member: Speeds, others: Sequence[Speeds], link: Link
) -> list[tuple[float, float]]:
    """Least work and all-reduce of a layer in groups of 2, 3 ... that have this member.

    Work is that of the member with the quickest of the others; a group too large to be listed
    counts as one that works in no time.
    """
    floors = []
    for members in range(2, min(len(others), LARGEST_GROUP) + 2):
        work = shared_floor(problem, member, others, members)
        floors.append((work, allreduce_seconds(problem, link, members)))
    return floors


def shared_floor(problem: Problem, member: Speeds, others: Sequence[Speeds], members: int) -> float:
    """Least work of a layer in a group of so many: the member and the quickest of the others."""
    if members > LARGEST_GROUP:
        return 0.0
    reads = sum(heapq.nlargest(members - 1, (read for read, _ in others)))
    computes = sum(heapq.nlargest(members - 1, (compute for _, compute in others)))
    return shared_seconds(problem, (member[0] + reads, member[1] + computes))
