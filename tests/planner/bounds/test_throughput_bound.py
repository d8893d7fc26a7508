"""The counted bound is true: brute force over every plan of tiny problems never exceeds it."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import planner.bounds.throughput_bound as throughput_bound_module
from planner.best_plan import best_plan
from planner.bounds import group_rates
from planner.bounds.device_counts import device_counts_of
from planner.bounds.layer_flow_bound import highest_flow, layer_flow_bound
from planner.bounds.throughput_bound import best_sums, device_count_bound, throughput_bound
from planner.cost.cost_model import CostModel
from planner.instance.cluster_file import read_file, read_instance
from planner.problem import PlanDevice, PlanModel, Problem, Workload
from planner.stop import never
from swarm.plan import Pipeline, Plan, Shard, Stage
from tests.planner.conftest import with_unlike_dtypes

RandomPlan = Callable[[Problem, random.Random], Plan]


def tight_world(seed: int, devices: int, layers: int = 4) -> Problem:
    """Devices of few kinds in up to three regions; memory, the ends or the ways between bind."""
    draw = random.Random(seed)
    model = PlanModel(
        name="tight",
        layers=layers,
        hidden=1024,
        kv_heads=2,
        mlp_blocks=draw.choice([2, 4]),
        attention_parameters=4e6,
        mlp_parameters=12e6,
        embedding_parameters=draw.choice([1e5, 1e6, 8e6]),
        bytes_per_weight=2.0,
        kv_bytes=draw.choice([1e3, 4096.0, 65536.0]),
    )
    kinds = [
        (
            draw.choice([1e12, 3e12, 1e13]),
            draw.choice([5e10, 1e11, 3e11]),
            draw.choice([4.5e7, 6e7, 8e7, 1.1e8, 1.6e8, 2.2e8]),
        )
        for _ in range(draw.choice([1, 2, 3]))
    ]
    hosts = [f"m{draw.randrange(devices)}" for _ in range(devices)]
    made = tuple(
        PlanDevice(f"{host}/{hosts[:i].count(host)}", host, *draw.choice(kinds))
        for i, host in enumerate(hosts)
    )
    region = np.array([draw.randrange(3) for _ in dict.fromkeys(hosts)])
    near = region[:, None] == region
    latency = np.where(near, draw.choice([1e-5, 2e-4, 1e-3]), draw.choice([1e-4, 5e-3, 5e-2]))
    bandwidth = np.where(near, draw.choice([1e8, 1e9, 1e10]), draw.choice([1e7, 1e8, 1e9]))
    np.fill_diagonal(latency, 1e-5)
    np.fill_diagonal(bandwidth, 1e10)
    load = Workload(draw.choice([24, 400]), draw.choice([40, 100]))
    tight = Problem(model, made, latency, bandwidth, load, "throughput")
    return with_unlike_dtypes(tight, seed) if draw.random() < 0.5 else tight


def most_tokens_per_second(problem: Problem) -> float:
    """Over all divisions of the devices into pipelines, all orders, layers and shares."""
    cost, everyone = CostModel(problem), tuple(d.id for d in problem.devices)
    subsets = [
        frozenset(chosen)
        for size in range(1, len(everyone) + 1)
        for chosen in itertools.combinations(everyone, size)
    ]
    alone = {subset: _best_pipeline(cost, sorted(subset)) for subset in subsets}
    best: dict[frozenset[str], float] = {frozenset(): 0.0}
    for whole in subsets:
        parts = [subset for subset in subsets if subset <= whole]
        best[whole] = max(alone[part] + best[whole - part] for part in parts)
    return best[frozenset(everyone)]


def _best_pipeline(cost: CostModel, devices: Sequence[str]) -> float:
    """The best pipeline in which all these devices serve."""
    best = 0.0
    for order in itertools.permutations(devices):
        for groups in _cuts(order):
            for layers in _sums(cost.model.layers, len(groups)):
                for pipeline in _shared_out(cost.problem, groups, layers):
                    if cost.room(pipeline) >= 1:
                        best = max(best, cost.throughput(pipeline))
    return best


def _cuts(order: Sequence[str]) -> Iterator[list[tuple[str, ...]]]:
    """Every way to cut a sequence; of a group only the leader's place matters."""
    for inner in itertools.product((False, True), repeat=len(order) - 1):
        cuts = [0, *(i + 1 for i, cut in enumerate(inner) if cut), len(order)]
        groups = [tuple(order[a:b]) for a, b in itertools.pairwise(cuts)]
        if all(list(group[1:]) == sorted(group[1:]) for group in groups):
            yield groups


def _sums(total: int, parts: int, least: int = 1) -> Iterator[tuple[int, ...]]:
    """Every way to write the total as so many whole numbers in order."""
    if parts == 1:
        yield (total,)
        return
    for first in range(least, total - least * (parts - 1) + 1):
        for rest in _sums(total - first, parts - 1, least):
            yield (first, *rest)


def _shared_out(
    problem: Problem, groups: Sequence[tuple[str, ...]], layers: Sequence[int]
) -> Iterator[Pipeline]:
    starts = [sum(layers[:i]) for i in range(len(layers) + 1)]
    for shards in itertools.product(*(_deals(problem, group) for group in groups)):
        ends = itertools.pairwise(starts)
        yield Pipeline(tuple(Stage(*end, shard) for end, shard in zip(ends, shards, strict=True)))


def _deals(problem: Problem, group: tuple[str, ...]) -> Iterator[tuple[Shard, ...]]:
    model, size = problem.model, len(group)
    for kv in _sums(model.kv_heads, size, 0):
        for mlp in _sums(model.mlp_blocks, size, 0):
            if all(a + b for a, b in zip(kv, mlp, strict=True)):
                yield tuple(Shard(*each) for each in zip(group, kv, mlp, strict=True))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 2))
def test_no_plan_at_all_beats_it_on_few_devices(seed: int, devices: int) -> None:
    problem = tight_world(seed, devices)
    best = most_tokens_per_second(problem)
    bound = device_count_bound(problem, best / 3, highest_flow(problem))
    assert bound is not None
    assert bound >= best * (1 - 1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 3))
def test_groups_that_are_not_listed_are_bounded_too(seed: int, listed: int) -> None:
    problem = tight_world(seed, 3, layers=3)
    best = most_tokens_per_second(problem)
    with patch.object(group_rates, "MOST_GROUPS", listed):
        bound = device_count_bound(problem, best / 3, highest_flow(problem))
    assert bound is not None
    assert bound >= best * (1 - 1e-9)


def test_sums_over_divisions_are_the_best_of_all_divisions() -> None:
    problem = tight_world(5, 4)
    groups = group_rates.group_rates_of(problem, device_counts_of(problem))
    sizes = [range(count + 1) for count in groups.available.counts]
    counts = list(itertools.product(*sizes))
    draw = random.Random(0)
    flows = {count: draw.random() * sum(count) for count in counts}
    expected: dict[tuple[int, ...], float] = {}
    for whole in counts:
        inside = [c for c in counts if all(a <= b for a, b in zip(c, whole, strict=True))]
        rests = [tuple(b - a for a, b in zip(c, whole, strict=True)) for c in inside]
        parts = zip(inside, rests, strict=True)
        expected[whole] = max(flows[c] + max(0.0, expected.get(r, 0.0)) for c, r in parts)
    with patch.object(throughput_bound_module, "most_pipelines", lambda problem: 4):
        found = best_sums(groups, np.array([flows[count] for count in counts]))
    assert found == pytest.approx([expected[count] for count in counts])


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_classes_that_differ_in_links_only_may_be_merged(seed: int) -> None:
    problem = tight_world(seed, 3, layers=3)
    best = most_tokens_per_second(problem)
    apart, merged = device_counts_of(problem), device_counts_of(problem).merged()
    assert sum(merged.counts) == sum(apart.counts)
    with patch.object(throughput_bound_module, "MOST_COUNTS", merged.ways):
        bound = device_count_bound(problem, best / 3, highest_flow(problem))
    assert bound is not None
    assert bound >= best * (1 - 1e-9)


def test_a_stop_rule_ends_the_work_and_the_bound_still_holds(cluster_file: Path) -> None:
    problem = read_instance(read_file(cluster_file), "helix-tiny-10-30b", "throughput").problem
    quick = layer_flow_bound(problem)
    at_once = throughput_bound(problem, 170.0, lambda best: True)
    patient = throughput_bound(problem, 170.0)
    assert patient.value < at_once.value <= quick.value


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 6))
def test_no_plan_at_all_beats_it_on_three_devices(seed: int, layers: int) -> None:
    problem = tight_world(seed, 3, layers)
    best = most_tokens_per_second(problem)
    bound = device_count_bound(problem, best / 3, highest_flow(problem))
    assert bound is not None
    assert bound >= best * (1 - 1e-9)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 5))
def test_no_random_plan_beats_it_on_more_devices(
    any_plan: RandomPlan, seed: int, devices: int
) -> None:
    problem = tight_world(seed, devices, layers=6)
    cost, draw = CostModel(problem), random.Random(seed)
    plans = [any_plan(problem, draw) for _ in range(60)]
    best = max((cost.total_throughput(p) for p in plans if not cost.reasons(p)), default=0.0)
    bound = device_count_bound(problem, best / 2, highest_flow(problem))
    assert bound is None or bound >= best * (1 - 1e-9)


@pytest.mark.parametrize("name", ["helix-tiny-10-30b", "thunderserve-8-30b"])
def test_pools_with_little_kv_memory_are_proven_near_their_best(
    cluster_file: Path, name: str
) -> None:
    problem = read_instance(read_file(cluster_file), name, "throughput").problem
    value = CostModel(problem).total_throughput(best_plan(problem, never))
    bound = throughput_bound(problem, value)
    assert value <= bound.value <= value * 1.02
    assert bound.value < layer_flow_bound(problem).value
    assert "counted" in bound.method


def test_many_unlike_devices_get_the_quick_bound_only(cluster_file: Path) -> None:
    file = read_file(cluster_file)
    problem = read_instance(file, "hexgen-hetero-full-58", "throughput").problem
    assert throughput_bound(problem, 1.0) == layer_flow_bound(problem)
    assert device_count_bound(problem, 1.0, highest_flow(problem)) is None
