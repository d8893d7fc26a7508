"""Layer floor: seconds that one layer of one request takes at least, on a device or in a group."""

import heapq
from collections.abc import Sequence

from planner.cost.roofline import (
    Speeds,
    Work,
    decode_pass,
    layer_allreduce_seconds,
    layer_part,
    least_row_bytes,
    prefill_pass,
)
from planner.problem import Problem

LARGEST_GROUP = 16  # larger tensor-parallel groups are taken to cost only their all-reduce
Link = tuple[float, float]  # latency and bandwidth


def loads(problem: Problem) -> tuple[Work, Work]:
    """What one layer asks for (all decode steps, the prefill) of one request."""
    layer, load = layer_part(problem.model), problem.workload
    step, steps = layer.work(decode_pass(load, 1.0)), load.output_tokens - 1
    return Work(steps * step.read_bytes, steps * step.flop), layer.work(prefill_pass(load))


def alone_seconds(problem: Problem, speeds: Speeds) -> float:
    """Seconds of a layer on a device of its own."""
    return sum(float(work.seconds(speeds)) for work in loads(problem))


def shared_seconds(problem: Problem, speeds: Speeds) -> float:
    """Least seconds of a layer on a group of those summed speeds, however it shares."""
    decode, prefill = loads(problem)
    whole = Work(decode.read_bytes + prefill.read_bytes, decode.flop + prefill.flop)
    return float(whole.seconds(speeds))


def allreduce_seconds(problem: Problem, link: Link, members: int) -> float:
    """Seconds of a layer's all-reduces for one request over a link no worse than the group's."""
    row, load = least_row_bytes(problem), problem.workload
    prompt = float(layer_allreduce_seconds(load.input_tokens * row, members, link))
    step = float(layer_allreduce_seconds(row, members, link))
    return prompt + (load.output_tokens - 1) * step


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
    reads = heapq.nlargest(members - 1, (each.bytes_per_second for each in others))
    computes = heapq.nlargest(members - 1, (each.flops for each in others))
    together = Speeds(member.bytes_per_second + sum(reads), member.flops + sum(computes))
    return shared_seconds(problem, together)
