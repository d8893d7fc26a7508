"""Helix capacity mode: segments cover all layers, carry the flow, and reach the known figures."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.instance.cluster_file import read_file, read_instance
from planner.search.helix_flow import Nodes, best_segments, flow_cap, segment_plan
from planner.stop import never
from swarm.plan import Plan


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("helix-tiny-10-30b", 286.58),
        ("helix-single-24-70b", 2045.0),
        ("helix-hetero-42-70b", 5900.0),
    ],
)
def test_reaches_the_flow_of_the_gates(cluster_file: Path, name: str, least: float) -> None:
    instance = read_instance(read_file(cluster_file), name)
    plan, flow, bound = segment_plan(instance.problem, instance.capacity, never)
    assert least <= flow <= bound.value * (1 + 1e-6)
    assert plan.pipelines[0].layers == instance.problem.model.layers
    for stage in plan.pipelines[0].stages:
        machines = [holder[0].peer for holder in stage.holders]
        assert carried(instance.problem, instance.capacity, machines, stage.layers) >= flow - 1e-6
    assert Plan.from_json(plan.to_json()) == plan


def carried(problem, capacity, machines: list[str], layers: int) -> float:  # type: ignore[no-untyped-def]
    total = 0.0
    for machine in machines:
        kinds = [d.kind for d in problem.devices if d.machine == machine]
        name = kinds[0] if len(kinds) == 1 else f"{kinds[0]}x{len(kinds)}"
        total += max(capacity[name][layers - 1 :][:1], default=0.0)
    return total


def brute_flow(nodes: Nodes, layers: int) -> float:
    """Best flow of any way to give nodes to consecutive segments."""
    owners = [t for t, count in enumerate(nodes.counts) for _ in range(count)]
    best = 0.0
    for parts in range(1, layers + 1):
        for cut in itertools.combinations(range(1, layers), parts - 1):
            sizes = [b - a for a, b in itertools.pairwise((0, *cut, layers))]
            for choice in itertools.product(range(parts), repeat=len(owners)):
                flows = [0.0] * parts
                for kind, part in zip(owners, choice, strict=True):
                    capacity = nodes.capacity[kind]
                    if sizes[part] <= len(capacity):
                        flows[part] += capacity[sizes[part] - 1]
                best = max(best, min(flows))
    return best


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_equals_brute_force_and_never_exceeds_the_bound(data: st.DataObject) -> None:
    kinds = data.draw(st.integers(1, 2))
    capacity = tuple(
        tuple(sorted(data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=3)), reverse=True))
        for _ in range(kinds)
    )
    machines = tuple(tuple("x" * data.draw(st.integers(1, 2))) for _ in range(kinds))
    nodes = Nodes(tuple("ab"[:kinds]), machines, tuple(tuple(map(float, c)) for c in capacity))
    layers = data.draw(st.integers(1, 4))
    flow, segments = best_segments(nodes, layers, never)
    best = brute_flow(nodes, layers)
    assert flow == pytest.approx(best, rel=1e-4, abs=1e-4)
    assert best <= flow_cap(nodes, layers) * (1 + 1e-9)
    if segments:
        assert sum(s.layers for s in segments) >= layers
