"""Bounds are true: no plan, brute-forced or random, is better than its certificate."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.best_plan import best_plan
from planner.bounds.latency_bound import latency_bound
from planner.bounds.layer_flow_bound import layer_flow_bound
from planner.cost.cost_model import CostModel
from planner.instance.cluster_file import instance_ids, read_file, read_instance
from planner.problem import Problem
from planner.stop import never
from swarm.errors import DoesNotFit
from swarm.plan import Plan
from tests.planner.conftest import with_unlike_dtypes

World = Callable[..., Problem]
RandomPlan = Callable[[Problem, random.Random], Plan]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.booleans())
def test_no_random_plan_beats_a_bound(
    world: World, any_plan: RandomPlan, seed: int, devices: int, mixed: bool
) -> None:
    problem = world(seed, devices=devices, layers=6)
    problem = with_unlike_dtypes(problem, seed) if mixed else problem
    cost, draw = CostModel(problem), random.Random(seed)
    most, least = layer_flow_bound(problem).value, latency_bound(problem).value
    for _ in range(30):
        plan = any_plan(problem, draw)
        if not cost.reasons(plan):
            assert cost.total_throughput(plan) <= most * (1 + 1e-9)
            assert cost.best_latency(plan) >= least * (1 - 1e-9)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.sampled_from(["latency", "throughput"]),
    st.booleans(),
)
def test_no_plan_found_beats_a_bound(
    world: World, seed: int, devices: int, objective: str, mixed: bool
) -> None:
    problem = world(seed, devices=devices, layers=4, objective=objective)
    problem = with_unlike_dtypes(problem, seed) if mixed else problem
    try:
        plan = best_plan(problem, never)
    except DoesNotFit:
        return
    cost = CostModel(problem)
    assert cost.reasons(plan) == []
    assert cost.total_throughput(plan) <= layer_flow_bound(problem).value * (1 + 1e-9)
    assert cost.best_latency(plan) >= latency_bound(problem).value * (1 - 1e-9)


@pytest.mark.parametrize("number", range(0, 17, 4))
def test_bounds_hold_on_random_plans_of_instances(
    cluster_file: Path, any_plan: RandomPlan, number: int
) -> None:
    file = read_file(cluster_file)
    problem = read_instance(file, instance_ids(file)[number]).problem
    cost, draw = CostModel(problem), random.Random(number)
    most, least = layer_flow_bound(problem).value, latency_bound(problem).value
    for _ in range(40):
        plan = any_plan(problem, draw)
        if not cost.reasons(plan):
            assert cost.total_throughput(plan) <= most
            assert cost.best_latency(plan) >= least
