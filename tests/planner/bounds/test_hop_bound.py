"""Hops bind the latency bound truly: no pipeline is quicker, and a plain ring is nearly met."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.best_plan import best_plan
from planner.bounds.hop_bound import least_machine_seconds
from planner.bounds.latency_bound import latency_bound
from planner.cost.cost_model import CostModel
from planner.instance.cluster_file import read_file, read_instance
from planner.problem import Problem, Workload
from planner.stop import never
from swarm.errors import DoesNotFit
from swarm.plan import Plan
from tests.planner.conftest import with_unlike_dtypes

World = Callable[..., Problem]
RandomPlan = Callable[[Problem, random.Random], Plan]


def far_world(world: World, seed: int) -> Problem:
    """Links of very unlike latency and bandwidth, ways there and back unlike, tight memory."""
    draw = random.Random(seed)
    problem = world(seed, devices=draw.randint(1, 5), layers=draw.choice([4, 6]))
    count = len(problem.machines)
    latency = np.array([[draw.choice([1e-5, 1e-3, 5e-2]) for _ in range(count)]] * count)
    bandwidth = np.array([[draw.choice([1e7, 1e9]) for _ in range(count)] for _ in range(count)])
    np.fill_diagonal(latency, 1e-5)
    np.fill_diagonal(bandwidth, 1e10)
    devices = tuple(
        replace(device, memory_bytes=draw.choice([4e7, 8e7, 1.6e8])) for device in problem.devices
    )
    model = replace(problem.model, embedding_parameters=draw.choice([1e6, 2e7]))
    load = Workload(draw.choice([1, 24, 400]), draw.choice([1, 2, 40]))
    far = replace(
        problem, model=model, devices=devices, latency=latency, bandwidth=bandwidth, workload=load
    )
    return with_unlike_dtypes(far, seed) if draw.random() < 0.5 else far


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_the_exact_search_never_beats_the_bound(world: World, seed: int) -> None:
    problem = far_world(world, seed)
    try:
        plan = best_plan(problem, never)
    except DoesNotFit:
        return
    assert CostModel(problem).best_latency(plan) >= latency_bound(problem).value * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_no_random_plan_beats_the_bound(world: World, any_plan: RandomPlan, seed: int) -> None:
    problem, draw = far_world(world, seed), random.Random(seed)
    cost, least = CostModel(problem), latency_bound(problem).value
    for _ in range(30):
        plan = any_plan(problem, draw)
        if not cost.reasons(plan):
            assert cost.best_latency(plan) >= least * (1 - 1e-9)


def test_a_ring_of_equal_machines_is_nearly_met(world: World) -> None:
    problem = world(1, devices=4, layers=6)
    devices = tuple(
        replace(d, id=f"m{n}/0", machine=f"m{n}", memory_bytes=8e7, flops=1e13)
        for n, d in enumerate(problem.devices)
    )
    latency, bandwidth = np.full((4, 4), 5e-3), np.full((4, 4), 1e9)
    ring = replace(problem, devices=devices, latency=latency, bandwidth=bandwidth)
    found = CostModel(ring).best_latency(best_plan(ring, never))
    assert latency_bound(ring).method == "machines and hops"
    assert found <= 1.05 * latency_bound(ring).value


def test_farther_machines_raise_the_bound(world: World) -> None:
    problem = far_world(world, 7)
    apart = ~np.eye(len(problem.machines), dtype=bool)
    far = replace(problem, latency=problem.latency + 0.01 * apart)
    assert least_machine_seconds(far) >= least_machine_seconds(problem)


@pytest.mark.parametrize(
    ("name", "found"),
    [("helix-hetero-42-70b", 27.224), ("parallax-7-qwen32b", 9.9326), ("edgeshard-15-70b", 40.68)],
)
def test_instances_that_hops_bind_are_within_a_tenth(
    cluster_file: Path, name: str, found: float
) -> None:
    bound = latency_bound(read_instance(read_file(cluster_file), name).problem)
    assert bound.method == "machines and hops"
    assert bound.value <= found <= 1.1 * bound.value
