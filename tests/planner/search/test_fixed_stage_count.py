"""--stages: every pipeline has as many stages as asked for, and stays valid."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from planner.best_plan import best_plan
from planner.cli.commands import main
from planner.cost.cost_model import CostModel
from planner.instance.cluster_file import read_file, read_instance
from planner.search.fixed_stage_count import plan_with_stages
from planner.search.group_pool import GroupPool
from planner.stop import never


@pytest.mark.parametrize("objective", ["latency", "throughput", "slo"])
@pytest.mark.parametrize("stages", [1, 3, 8])
def test_every_pipeline_has_the_stages_asked_for(
    cluster_file: Path,
    oracle: ModuleType,
    capsys: pytest.CaptureFixture[str],
    objective: str,
    stages: int,
) -> None:
    arguments = ["plan", "--instance", str(cluster_file), "--id", "hexgen-case-study", "--json"]
    assert main([*arguments, "--objective", objective, "--stages", str(stages)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {len(pipeline["stages"]) for pipeline in said["plan"]["pipelines"]} == {stages}
    assert (
        oracle.Evaluator(*oracle.load(cluster_file, "hexgen-case-study")).problems(said["plan"])
        == []
    )


@pytest.mark.parametrize(("objective", "stages"), [("latency", 1), ("throughput", 8)])
def test_the_number_that_the_free_search_takes_costs_little(
    cluster_file: Path, objective: str, stages: int
) -> None:
    problem = read_instance(read_file(cluster_file), "hexgen-case-study", objective).problem
    cost = CostModel(problem)
    forced = plan_with_stages(GroupPool(problem, cost), objective, stages, never, 0)
    free = best_plan(problem, never)
    if objective == "latency":
        assert cost.best_latency(forced) <= 1.01 * cost.best_latency(free)
    else:
        assert cost.total_throughput(forced) >= 0.95 * cost.total_throughput(free)


def test_stages_that_no_memory_allows_are_infeasible(
    cluster_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "--instance", str(cluster_file), "--id", "petals-real-14-bloom"]
    assert main([*arguments, "--stages", "1"]) == 2
    assert "no pipeline of one stage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--stages", "81"], "80 layers"),
        (["--stages", "9"], "8 devices"),
        (["--stages", "2", "--search", "hexgen"], "--search hexgen"),
        (["--stages", "2", "--cost", "paper"], "--cost paper"),
        (["--stages", "0"], "--stages"),
    ],
)
def test_stages_that_cannot_be_are_refused_in_one_sentence(
    cluster_file: Path, capsys: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    arguments = ["plan", "--instance", str(cluster_file), "--id", "hexgen-case-study"]
    assert main([*arguments, *flags]) == 2
    said = capsys.readouterr().err
    assert named in said
    assert len(said.strip().splitlines()) == 1
