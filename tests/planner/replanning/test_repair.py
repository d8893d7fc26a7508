"""Local repair: halves join, spares take over lost shards, and little more than is lost moves."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from planner.cli.options import changed_file
from planner.cost.cost_model import CostModel
from planner.instance.cluster_file import read_file, read_instance
from planner.problem import Problem
from planner.replanning.migration import Holdings, least_moved_bytes, moved_bytes
from planner.replanning.repair import repairs
from planner.replanning.replan import replan
from planner.search.group_pool import GroupPool
from planner.stop import never
from swarm.plan import Pipeline, Plan, Shard, Stage

NAME = "hexgen-churn-4-offline"
Spans = Sequence[tuple[int, int, Sequence[str]]]


def problem_of(cluster_file: Path, objective: str, gone: Sequence[str] = ()) -> Problem:
    file = changed_file(read_file(cluster_file), NAME, gone, [])
    return read_instance(file, NAME, objective).problem


def pipeline_of(problem: Problem, spans: Spans) -> Pipeline:
    model = problem.model
    stages = []
    for start, end, devices in spans:
        kv, mlp = model.kv_heads // len(devices), model.mlp_blocks // len(devices)
        stages.append(Stage(start, end, tuple(Shard(device, kv, mlp) for device in devices)))
    return Pipeline(tuple(stages))


def ids(machine: str, first: int, count: int) -> list[str]:
    return [f"{machine}/{number}" for number in range(first, first + count)]


def two_halves(problem: Problem) -> Plan:
    """Two pipelines of two tensor-parallel stages."""
    a = [(0, 40, ids("is-0", 0, 4)), (40, 80, ids("is-1", 0, 4))]
    b = [(0, 40, ids("is-1", 4, 4)), (40, 80, ids("is-0", 4, 4))]
    return Plan((pipeline_of(problem, a), pipeline_of(problem, b)))


def test_the_halves_left_of_two_pipelines_join_without_loading(cluster_file: Path) -> None:
    current = two_halves(problem_of(cluster_file, "latency"))
    gone = [*ids("is-0", 0, 4), *ids("is-0", 4, 4)]
    after = problem_of(cluster_file, "latency", ["is-0"])
    assert {shard.device for _, shard in current.shards()} >= set(gone)
    made = replan(after, current, never, search=False)
    assert made.moved_bytes == 0
    assert [(s.start, s.end) for s in made.plan.pipelines[0].stages] == [(0, 40), (40, 80)]
    assert least_moved_bytes(after, current, 1) == 0


def test_halves_that_overlap_are_cut_back_without_loading(cluster_file: Path) -> None:
    before = problem_of(cluster_file, "latency")
    a = [(0, 44, ids("is-1", 0, 4)), (44, 80, ids("is-0", 0, 4))]
    b = [(0, 36, ids("is-0", 4, 4)), (36, 80, ids("is-1", 4, 4))]
    current = Plan((pipeline_of(before, a), pipeline_of(before, b)))
    after = problem_of(cluster_file, "latency", ["is-0"])
    made = replan(after, current, never, search=False)
    assert made.moved_bytes == 0
    assert CostModel(after).reasons(made.plan) == []


def test_a_spare_takes_over_the_shard_of_a_lost_neighbour(cluster_file: Path) -> None:
    before = problem_of(cluster_file, "latency")
    shards = tuple(Shard(device, 1 + (n == 0), 32) for n, device in enumerate(ids("is-0", 1, 7)))
    rest = pipeline_of(before, [(0, 80, ["is-1/0"])]).stages[0].shards
    current = Plan((Pipeline((Stage(0, 70, shards), Stage(70, 80, rest))),))
    assert CostModel(before).reasons(current) == []
    after = problem_of(cluster_file, "latency", ["is-0/7"])
    made = repairs(GroupPool(after, CostModel(after)), Holdings(current), "latency")
    moved = min((moved_bytes(after, current, plan) for plan in made), key=lambda m: sum(m.values()))
    assert moved.keys() == {"is-0/0"}
    assert sum(moved.values()) == pytest.approx(least_moved_bytes(after, current, 1))


def chains(problem: Problem) -> Plan:
    """Two pipelines of single devices: 16 stages of 5 layers, and 14 of 5 or 6."""
    first = [*ids("is-0", 0, 8), *ids("is-1", 0, 8)]
    second = [*ids("no-0", 0, 3), *ids("no-1", 0, 3), *ids("nv-0", 0, 8)]
    edges = [80 * n // 14 for n in range(15)]
    a = [(5 * n, 5 * n + 5, [device]) for n, device in enumerate(first)]
    b = [(edges[n], edges[n + 1], [device]) for n, device in enumerate(second)]
    return Plan((pipeline_of(problem, a), pipeline_of(problem, b)))


def test_lost_layers_of_a_chain_are_closed_with_little_more_than_is_lost(
    cluster_file: Path,
) -> None:
    current = chains(problem_of(cluster_file, "throughput"))
    after = problem_of(cluster_file, "throughput", ids("is-0", 4, 4))
    made = replan(after, current, never, search=False)
    least = least_moved_bytes(after, current, 2)
    assert least == pytest.approx(20 * after.model.layer_bytes)
    assert least <= made.moved_bytes <= 2 * least
    assert current.pipelines[1] in made.plan.pipelines
    assert CostModel(after).reasons(made.plan) == []


def test_no_repair_loads_less_than_the_layers_that_lost_their_holders(cluster_file: Path) -> None:
    current = chains(problem_of(cluster_file, "throughput"))
    gone = [*ids("is-0", 4, 4), *ids("nv-0", 5, 3)]
    after = problem_of(cluster_file, "throughput", gone)
    made = list(repairs(GroupPool(after, CostModel(after)), Holdings(current), "throughput"))
    assert made
    for plan in made:
        moved = sum(moved_bytes(after, current, plan).values())
        assert moved >= least_moved_bytes(after, current, len(plan.pipelines)) * (1 - 1e-9)
