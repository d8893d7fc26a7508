"""Segments: layers held by several nodes at once, for Helix's objective of static flow.

Helix (ASPLOS 2025) gives every node type the tokens/s that it sustains with k layers. A segment of
k layers may be served by any set of nodes that each hold exactly those; a flow f is feasible if
segments of capacity at least f cover all layers. The largest f by bisection, an integer programme
over kinds of segments inside (PLANNER.md 6.3).
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planner.bounds.layer_flow_bound import Bound
from planner.instance.cluster_file import Instance
from planner.problem import Problem
from planner.result import OUR_SEARCH, Result
from planner.stop import StopRule
from swarm.errors import BadInput
from swarm.plan import Pipeline, Plan, Shard, Stage

HALVINGS = 22
MOST_KINDS_MIXED = 3  # kinds of nodes in one segment, if there are few kinds
FEW_KINDS = 3
MILP_SECONDS = 4.0  # for one flow; without an answer it counts as infeasible


@dataclass(frozen=True, slots=True)
class Nodes:
    """Kinds of nodes: their machines, and tokens/s with 1, 2, 3 ... layers."""

    names: tuple[str, ...]
    machines: tuple[tuple[str, ...], ...]
    capacity: tuple[tuple[float, ...], ...]

    @property
    def counts(self) -> list[int]:
        """Nodes of each kind."""
        return [len(machines) for machines in self.machines]


@dataclass(frozen=True, slots=True)
class Segment:
    """So many nodes of each kind that serve so many layers."""

    counts: tuple[int, ...]
    layers: int


def nodes_of(problem: Problem, capacity: Mapping[str, Sequence[float]]) -> Nodes:
    """Sort machines into kinds; raises BadInput if a kind has no capacity listed."""
    found: dict[str, list[str]] = {}
    for machine in problem.machines:
        kinds = [device.kind for device in problem.devices if device.machine == machine]
        name = kinds[0] if len(kinds) == 1 else f"{kinds[0]}x{len(kinds)}"
        if name not in capacity:
            raise BadInput(f"capacity_tokens_s has no entry for {name}.", "Add it to the file.")
        found.setdefault(name, []).append(machine)
    return Nodes(
        tuple(found),
        tuple(tuple(machines) for machines in found.values()),
        tuple(tuple(capacity[name]) for name in found),
    )


def best_segments(nodes: Nodes, layers: int, stop: StopRule) -> tuple[float, list[Segment]]:
    """The largest flow found (tokens/s) and segments that carry it; 0 and none if impossible."""
    low, high = 0.0, flow_cap(nodes, layers)
    best: list[Segment] = []
    for _ in range(HALVINGS):
        if stop(-low) or high - low < 1e-6 * high:
            break
        middle = (low + high) / 2
        cover = _cover(nodes, layers, middle)
        if cover:
            low, best = _flow(nodes, cover), cover
        else:
            high = middle
    return low, best


def _flow(nodes: Nodes, segments: Sequence[Segment]) -> float:
    """What the weakest segment sustains."""
    return min(
        sum(c * nodes.capacity[t][s.layers - 1] for t, c in enumerate(s.counts) if c)
        for s in segments
    )


def flow_cap(nodes: Nodes, layers: int) -> float:
    """Capped layer-flow: the largest f with sum over nodes of max_k k min(T(k), f) >= layers f."""
    low, high = 0.0, max(max(c) for c in nodes.capacity) * sum(nodes.counts)
    for _ in range(60):
        f = (low + high) / 2
        held = sum(
            count * max((k + 1) * min(t, f) for k, t in enumerate(capacity))
            for count, capacity in zip(nodes.counts, nodes.capacity, strict=True)
        )
        low, high = (f, high) if held >= layers * f * (1 - 1e-9) else (low, f)
    return high


def segment_bound(nodes: Nodes, layers: int) -> Bound:
    """No plan of segments or overlapping spans carries more flow."""
    return Bound(flow_cap(nodes, layers), "capped layer-flow")


def _cover(nodes: Nodes, layers: int, flow: float) -> list[Segment]:
    """Segments of at least that flow that cover all layers; empty if none are found."""
    # loaded late: help needs it not
    from scipy.optimize import Bounds, LinearConstraint, linprog, milp

    kinds = list(_segments(nodes, flow))
    if not kinds:
        return []
    gain = np.array([-float(kind.layers) for kind in kinds])
    use = np.array([kind.counts for kind in kinds], dtype=float).T
    limits = np.array(nodes.counts, dtype=float)
    relaxed = linprog(gain, A_ub=use, b_ub=limits, method="highs")
    if relaxed.status != 0 or -relaxed.fun < layers - 1e-6:
        return []
    constraints = [
        LinearConstraint(use, -np.inf, limits),
        LinearConstraint(-gain[None, :], layers, np.inf),
    ]
    solved = milp(
        np.zeros(len(kinds)),
        constraints=constraints,
        integrality=np.ones(len(kinds)),
        bounds=Bounds(0, np.inf),
        options={"time_limit": MILP_SECONDS},
    )
    if solved.x is None:
        return []
    chosen = np.round(solved.x).astype(int)
    return [kind for kind, times in zip(kinds, chosen, strict=True) for _ in range(times)]


def _segments(nodes: Nodes, flow: float) -> Iterator[Segment]:
    """The smallest sets of nodes that sustain the flow, each with the most layers it can."""
    most = max(map(len, nodes.capacity))
    longest: dict[tuple[int, ...], int] = {}
    for layers in range(1, most + 1):
        speeds = [c[layers - 1] if len(c) >= layers else 0.0 for c in nodes.capacity]
        for counts in _smallest(nodes.counts, speeds, flow):
            longest[counts] = layers
    return (Segment(counts, layers) for counts, layers in longest.items())


def _smallest(
    available: Sequence[int], speeds: Sequence[float], flow: float
) -> Iterator[tuple[int, ...]]:
    """Counts of few kinds that reach the flow and would not without any one node."""
    able = [t for t, speed in enumerate(speeds) if speed > 0]
    mixed = MOST_KINDS_MIXED if len(available) <= FEW_KINDS else 2
    for size in range(1, mixed + 1):
        for chosen in itertools.combinations(able, size):
            *free, last = chosen
            for counts in itertools.product(*(range(1, available[t] + 1) for t in free)):
                rest = flow - sum(c * speeds[t] for c, t in zip(counts, free, strict=True))
                needed = math.ceil(rest / speeds[last] - 1e-12)
                if 1 <= needed <= available[last]:
                    held = dict(zip(chosen, (*counts, needed), strict=True))
                    yield tuple(held.get(t, 0) for t in range(len(available)))


def segment_plan(
    problem: Problem, capacity: Mapping[str, Sequence[float]], stop: StopRule
) -> tuple[Plan, float, Bound]:
    """The plan of segments with the largest flow found, that flow, and its bound."""
    nodes = nodes_of(problem, capacity)
    layers = problem.model.layers
    flow, segments = best_segments(nodes, layers, stop)
    bound = segment_bound(nodes, layers)
    if not segments:
        return Plan(()), 0.0, bound
    free = [list(machines) for machines in nodes.machines]
    stages: list[Stage] = []
    at = 0
    for segment in segments:
        chosen = [free[t].pop(0) for t, count in enumerate(segment.counts) for _ in range(count)]
        end = min(layers, at + segment.layers)
        if at < end:
            holders = tuple(_holder(problem, machine) for machine in chosen)
            stages.append(Stage(at, end, sum(holders, ()), holders))
        at = end
    return Plan((Pipeline(tuple(stages)),)), flow, bound


def segment_result(instance: Instance, stop: StopRule) -> Result:
    """Helix's capacity mode: largest static flow over segments with several holders."""
    if not instance.capacity:
        raise BadInput(
            f"{instance.fields.file}: {instance.fields.path}capacity_tokens_s is missing.",
            "Helix capacity mode needs it.",
        )
    plan, flow, bound = segment_plan(instance.problem, instance.capacity, stop)
    reasons = () if plan.pipelines else ("no set of segments covers all layers",)
    return Result(plan, "flow", flow, bound, OUR_SEARCH, reasons)


def _holder(problem: Problem, machine: str) -> tuple[Shard, ...]:
    """All devices of a machine, with even shares."""
    members = [device.id for device in problem.devices if device.machine == machine]
    kv = divmod(problem.model.kv_heads, len(members))
    mlp = divmod(problem.model.mlp_blocks, len(members))
    return tuple(
        Shard(device, kv[0] + (i < kv[1]), mlp[0] + (i < mlp[1]))
        for i, device in enumerate(members)
    )
