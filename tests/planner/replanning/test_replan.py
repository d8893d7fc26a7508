"""Re-planning: whole pipelines stay, only what must move moves, and a full search must pay."""

from pathlib import Path

import pytest

from planner.cli.options import changed_file
from planner.cost.cost_model import CostModel
from planner.instance.cluster_file import read_file, read_instance
from planner.problem import Problem
from planner.replanning.migration import load_seconds, moved_bytes, with_least_loading
from planner.replanning.replan import replan, thin_layers
from planner.search.baselines import symmetric_plan
from planner.search.group_pool import GroupPool
from planner.stop import never
from swarm.plan import Pipeline, Plan, Shard, Stage

NAME = "hexgen-churn-4-offline"


def problem_of(cluster_file: Path, objective: str, without: int = 0) -> Problem:
    gone = [f"is-0/{7 - i}" for i in range(without)]
    file = changed_file(read_file(cluster_file), NAME, gone, [])
    return read_instance(file, NAME, objective).problem


def placed(problem: Problem, objective: str) -> Plan:
    """Some good plan, soon."""
    return symmetric_plan(GroupPool(problem, CostModel(problem)), objective)


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_four_gpus_leave_and_whole_pipelines_stay(cluster_file: Path, objective: str) -> None:
    before, after = problem_of(cluster_file, objective), problem_of(cluster_file, objective, 4)
    current = placed(before, objective)
    made = replan(after, current, never, search=False)
    assert made.repaired
    assert CostModel(after).reasons(made.plan) == []
    here = set(after.index_of)
    whole = [p for p in current.pipelines if {s.device for t in p.stages for s in t.shards} <= here]
    assert set(whole) <= set(made.plan.pipelines)
    full = placed(after, objective)
    assert made.moved_bytes <= sum(moved_bytes(after, current, full).values())


def test_nothing_moves_when_nothing_changed(cluster_file: Path) -> None:
    problem = problem_of(cluster_file, "latency")
    current = placed(problem, "latency")
    made = replan(problem, current, never, search=False)
    assert made.moved_bytes == 0


def test_moved_bytes_count_only_what_is_missing(cluster_file: Path) -> None:
    problem = problem_of(cluster_file, "latency")
    model = problem.model
    whole = (model.kv_heads, model.mlp_blocks)

    def plan(cut: int, first: int = 0) -> Plan:
        a, b = Shard(f"is-0/{first}", *whole), Shard(f"is-0/{1 - first}", *whole)
        return Plan((Pipeline((Stage(0, cut, (a,)), Stage(cut, 80, (b,)))),))

    moved = moved_bytes(problem, plan(40), plan(43))
    assert moved == {"is-0/0": pytest.approx(3 * model.layer_bytes)}
    assert load_seconds(problem, moved) > 0
    exchanged = with_least_loading(problem, plan(40), plan(40, first=1))
    assert moved_bytes(problem, plan(40), exchanged) == {}


def test_layers_on_one_short_lived_peer_are_counted(cluster_file: Path) -> None:
    problem = problem_of(cluster_file, "latency")
    plan = placed(problem, "latency")
    assert thin_layers(GroupPool(problem, CostModel(problem)), plan) == 0


def test_a_broken_pipeline_is_mended_beside_a_whole_one(cluster_file: Path) -> None:
    before, after = problem_of(cluster_file, "latency"), problem_of(cluster_file, "latency", 1)
    current = placed(before, "latency")
    made = replan(after, current, never, search=False)
    assert len(made.plan.pipelines) == len(current.pipelines)
    assert CostModel(after).reasons(made.plan) == []
