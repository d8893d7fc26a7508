"""latency_bound: no pipeline answers one request sooner than memory bandwidth and links allow."""

import numpy as np

from planner.bound_rates import LARGEST_GROUP, Kind, kinds_of
from planner.bounds import Bound
from planner.problem import Problem


def latency_bound(problem: Problem) -> Bound:
    """Seconds of one request that no plan undercuts: the bandwidth-sum bound.

    A layer takes at least the time in which the best group that a member could be part of reads
    its weights and KV (or does its arithmetic) together, all-reduces included. Layers go to the
    quickest members as far as memory holds weights; the head and hops count as nothing.
    """
    kinds, model = kinds_of(problem), problem.model
    seconds = _least_layer_seconds(problem, list(kinds.elements()))
    left, total = float(model.layers), 0.0
    ranked = sorted(kinds, key=lambda kind: seconds[kind])
    for kind in ranked:
        held = min(left, kinds[kind] * kind.memory / model.layer_bytes)
        total += held * seconds[kind]
        left -= held
    return Bound(total, "bandwidth sum") if left < 1e-9 else Bound(float("inf"), "memory")


def _least_layer_seconds(problem: Problem, devices: list[Kind]) -> dict[Kind, float]:
    """For each kind, the least seconds of a layer in any group that has such a member."""
    reads = np.cumsum(sorted((1 / k.read for k in devices), reverse=True))
    computes = np.cumsum(sorted((1 / k.compute for k in devices), reverse=True))
    least = {}
    for kind in set(devices):
        best = _seconds(problem, 1 / kind.read, 1 / kind.compute)
        for members in range(2, min(len(devices), LARGEST_GROUP + 1) + 1):
            others = members - 2
            alone = members > LARGEST_GROUP
            work = _pure(
                problem, 1 / kind.read + reads[others], 1 / kind.compute + computes[others]
            )
            best = min(best, (0.0 if alone else work) + _talk(problem, kind, members))
        least[kind] = best
    return least


def _loads(problem: Problem) -> tuple[tuple[float, float], tuple[float, float]]:
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


def _seconds(problem: Problem, read: float, compute: float) -> float:
    """Seconds of a layer alone on a device of those speeds."""
    return sum(max(size / read, flop / compute) for size, flop in _loads(problem))


def _pure(problem: Problem, read: float, compute: float) -> float:
    """Least seconds of a layer on a group of those summed speeds, however it shares."""
    decode, prefill = _loads(problem)
    return max((decode[0] + prefill[0]) / read, (decode[1] + prefill[1]) / compute)


def _talk(problem: Problem, kind: Kind, members: int) -> float:
    """Seconds of a layer's all-reduces for one request over the kind's best links."""
    row, load = 2.0 * problem.model.hidden, problem.workload
    links = [kind.inside[:2], kind.outside] if members <= kind.inside[2] else [kind.outside]

    def once(size: float, link: tuple[float, float]) -> float:
        ring = 2 * (members - 1) * (link[0] + size / (members * link[1]))
        return min(ring, link[0] + (members - 1) * size / link[1])

    return min(
        2 * (once(load.input_tokens * row, link) + (load.output_tokens - 1) * once(row, link))
        for link in links
    )
