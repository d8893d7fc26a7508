"""The door: valid, deterministic, and never below the baselines that it starts from."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.best_plan import best_plan
from planner.cost.cost_model import CostModel
from planner.hexgen.genetic_search import HexGen, hexgen_start
from planner.instance.cluster_file import read_file, read_instance
from planner.make_plan import make_plan
from planner.pareto import pareto_front
from planner.problem import Problem
from planner.search.baselines import BASELINES, plan_value
from planner.search.group_pool import GroupPool
from planner.stop import never
from swarm.errors import DoesNotFit

World = Callable[..., Problem]
QUICK = ["hexgen-case-study", "parallax-7-qwen32b", "thunderserve-8-30b"]


@pytest.mark.parametrize("objective", ["latency", "throughput"])
@pytest.mark.parametrize("name", QUICK)
def test_is_never_below_hexgen_which_is_a_start_and_the_other_rivals(
    cluster_file: Path, name: str, objective: str
) -> None:
    problem = read_instance(read_file(cluster_file), name, objective).problem
    cost = CostModel(problem)
    pool = GroupPool(problem, cost)
    plan = best_plan(problem, never)
    assert cost.reasons(plan) == []
    hexgen = HexGen(pool, objective, 0)
    theirs, ours = hexgen.plan(never), plan_value(cost, plan, objective) * (1 + 1e-9)
    assert ours >= plan_value(cost, theirs, objective)
    assert hexgen.work <= pool.params.hexgen.work_to_start  # as a start it ends no earlier
    start = hexgen_start(pool, objective, never)
    assert plan_value(cost, start, objective) == plan_value(cost, theirs, objective)
    for baseline in BASELINES.values():
        placed = baseline(pool, objective)
        assert cost.reasons(placed) == []
        assert ours >= plan_value(cost, placed, objective)


def test_case_study_beats_the_published_plan_in_both(cluster_file: Path) -> None:
    file = read_file(cluster_file)
    quick = make_plan(read_instance(file, QUICK[0], "latency").problem, never)
    busy = make_plan(read_instance(file, QUICK[0], "throughput").problem, never)
    assert quick.value < 2.6
    assert quick.gap < 0.02
    assert busy.value > 690
    assert busy.gap < 0.05


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["latency", "throughput", "slo"]))
def test_equal_arguments_give_equal_valid_plans(world: World, seed: int, objective: str) -> None:
    problem = world(seed, devices=3, layers=4, objective=objective)
    try:
        plan = best_plan(problem, never, seed)
    except DoesNotFit:
        return
    assert CostModel(problem).reasons(plan) == []
    again = world(seed, devices=3, layers=4, objective=objective)
    assert best_plan(again, never, seed).digest == plan.digest


def test_the_pareto_front_rises_in_both_figures(cluster_file: Path) -> None:
    problem = read_instance(read_file(cluster_file), "hexgen-case-study").problem
    front = pareto_front(problem, never, 0)
    assert len(front) >= 2
    for a, b in itertools.pairwise(front):
        assert a.latency_seconds <= b.latency_seconds
        assert a.tokens_per_second < b.tokens_per_second


def test_stops_at_once_when_told_and_still_has_a_plan(cluster_file: Path) -> None:
    for objective in ("latency", "throughput"):
        problem = read_instance(read_file(cluster_file), "hexgen-hetero-half-30", objective).problem
        plan = best_plan(problem, lambda best: True)
        assert plan.pipelines
        assert CostModel(problem).reasons(plan) == []


@pytest.mark.slow  # as the first test of this file, of more devices
@pytest.mark.parametrize("objective", ["latency", "throughput"])
@pytest.mark.parametrize("name", ["petals-real-14-bloom", "thunderserve-8-30b"])
def test_hexgen_is_a_start_so_that_no_plan_is_worth_less(
    cluster_file: Path, name: str, objective: str
) -> None:
    problem = read_instance(read_file(cluster_file), name, objective).problem
    pool = GroupPool(problem, CostModel(problem))
    hexgen = HexGen(pool, objective, 0)
    theirs, ours = hexgen.plan(never), best_plan(problem, never)
    assert hexgen.work <= pool.params.hexgen.work_to_start
    assert plan_value(pool.cost, hexgen_start(pool, objective, never), objective) == plan_value(
        pool.cost, theirs, objective
    )
    assert plan_value(pool.cost, ours, objective) >= plan_value(pool.cost, theirs, objective)


def test_hexgen_as_a_start_ends_after_so_much_work(cluster_file: Path) -> None:
    problem = read_instance(read_file(cluster_file), "hexgen-hetero-full-58", "throughput").problem
    pool = GroupPool(problem, CostModel(problem))
    short = HexGen(pool, "throughput", 0, most_work=1.0)
    assert short.plan(never).pipelines
    whole = HexGen(pool, "throughput", 0, most_work=pool.params.hexgen.work_to_start)
    whole.plan(never)
    assert short.work < whole.work


def test_importing_the_planner_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "hivemind", "numba", "scipy", "rich")
    script = f"import planner, sys; print(*set(sys.modules) & set({heavy}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
