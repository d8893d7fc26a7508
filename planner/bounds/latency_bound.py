"""latency_bound: no pipeline answers one request sooner than memory bandwidth and links allow."""

from collections import Counter

from planner.bounds.device_rates import Kind, kinds_of
from planner.bounds.hop_bound import least_machine_seconds
from planner.bounds.layer_flow_bound import Bound
from planner.bounds.layer_time import alone_seconds, group_floors
from planner.problem import Problem


def latency_bound(problem: Problem) -> Bound:
    """Seconds of one request that no plan undercuts: the larger of two bounds.

    Bandwidth sum: a layer takes at least the time in which the best group that a member could be
    part of reads its weights and KV (or does its arithmetic) together, all-reduces included; layers
    go to the quickest members as far as memory holds weights. Machines and hops
    (`hop_bound.py`): every machine that serves costs a hop.
    """
    summed = _bandwidth_sum(problem)
    if summed == float("inf"):
        return Bound(summed, "memory")
    hopping = least_machine_seconds(problem)
    if hopping > summed:
        return Bound(hopping, "machines and hops")
    return Bound(summed, "bandwidth sum")


def _bandwidth_sum(problem: Problem) -> float:
    kinds, model = kinds_of(problem), problem.model
    seconds = {kind: _least_seconds(problem, kinds, kind) for kind in kinds}
    left, total = float(model.layers), 0.0
    for kind in sorted(kinds, key=lambda kind: seconds[kind]):
        held = min(left, kinds[kind] * kind.memory / model.layer_bytes)
        total += held * seconds[kind]
        left -= held
    return total if left < 1e-9 else float("inf")


def _least_seconds(problem: Problem, kinds: Counter[Kind], kind: Kind) -> float:
    """The least seconds of a layer in any group that has such a member."""
    others = [other.speeds for other in (kinds - Counter([kind])).elements()]
    inside = group_floors(problem, kind.speeds, others, kind.inside[:2])[: kind.inside[2] - 1]
    floors = [*inside, *group_floors(problem, kind.speeds, others, kind.outside)]
    grouped = (work + allreduce for work, allreduce in floors)
    return min([alone_seconds(problem, kind.speeds), *grouped])
