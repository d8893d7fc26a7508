"""The command line: one JSON object, pictures, and one sentence for every bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from planner.best_plan import best_plan
from planner.cli.commands import main
from planner.cli.svg_charts import curves_chart
from planner.cost.cost_model import CostModel
from planner.cost.criterion import latency_criterion
from planner.instance.cluster_file import read_file, read_instance
from planner.search.tensor_split_polish import Place, _moves, refined_split, true_seconds
from planner.simulation.simulator import Event, Simulation, poisson_trace
from planner.stop import never

Mend = Callable[[dict[str, Any]], None]


@pytest.fixture
def mended(cluster_file: Path, tmp_path: Path) -> Callable[[Mend], str]:
    """Write the cluster file with something changed in it."""

    def write(change: Mend) -> str:
        data = json.loads(cluster_file.read_text())
        change(data)
        path = tmp_path / "mended.json"
        path.write_text(json.dumps(data))
        return str(path)

    return write


def case_study(data: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = data["instances"][0]
    return entry


@pytest.mark.parametrize("search", ["swarm", "hexgen", "symmetric", "petals", "parallax"])
def test_json_is_one_object_that_the_oracle_accepts(
    cluster_file: Path, oracle: ModuleType, capsys: pytest.CaptureFixture[str], search: str
) -> None:
    arguments = ["plan", "--instance", str(cluster_file), "--id", "hexgen-case-study"]
    arguments += ["--objective", "throughput", "--search", search, "--json"]
    assert main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    judge = oracle.Evaluator(*oracle.load(cluster_file, "hexgen-case-study"))
    assert judge.problems(said["plan"]) == []
    assert said["value"] == pytest.approx(judge.report(said["plan"])["tokens_per_s"], rel=1e-6)
    assert said["value"] <= said["bound"]
    assert said["gap"] == pytest.approx(said["bound"] / said["value"] - 1)
    assert said["feasible"]
    assert said["search"] == search


def test_infeasible_says_how_many_bytes_are_missing(
    cluster_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "--instance", str(cluster_file), "--id", "prima-home-4"]
    assert main(arguments) == 2
    assert "INFEASIBLE" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert not said["feasible"]
    assert "27.8 GB are missing" in said["reasons"][0]


def remove(field: str) -> Mend:
    def change(data: dict[str, Any]) -> None:
        del case_study(data)["machines"][1][field]

    return change


def machine(**values: Any) -> Mend:
    return lambda data: case_study(data)["machines"][1].update(values)


def no_devices(data: dict[str, Any]) -> None:
    for entry in case_study(data)["machines"]:
        entry["count"] = 0


def far_apart(data: dict[str, Any]) -> None:
    case_study(data)["machines"][1]["region"] = "moon"


def negative_memory(data: dict[str, Any]) -> None:
    data["gpu_types"]["A5000"]["mem_GB"] = -24


def unknown_model(data: dict[str, Any]) -> None:
    case_study(data)["model"] = "gpt-9"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (remove("id"), "instances[0].machines[1].id"),
        (remove("gpu"), "instances[0].machines[1].gpu"),
        (machine(intra={}), "instances[0].machines[1].intra.lat_us"),
        (machine(count=-2), "machines[1].count"),
        (machine(count="two"), "machines[1].count"),
        (machine(gpu="H900"), "H900"),
        (negative_memory, "gpu_types.A5000.mem_GB"),
        (unknown_model, "gpt-9"),
        (no_devices, "machines"),
        (far_apart, "inter_region_pairs"),
    ],
)
def test_a_bad_field_is_named_with_its_file(
    mended: Callable[[Mend], str], capsys: pytest.CaptureFixture[str], change: Mend, named: str
) -> None:
    path = mended(change)
    assert main(["plan", "--instance", path, "--id", "hexgen-case-study"]) == 2
    said = capsys.readouterr().err
    assert path in said
    assert named in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--id", "nope"],
        [],
        ["--id", "hexgen-case-study", "--search", "magic"],
        ["--id", "hexgen-case-study", "--without", "nobody"],
        ["--id", "hexgen-case-study", "--add", "nonsense"],
        ["--id", "hexgen-case-study", "--add", "H900@dc"],
        ["--id", "hexgen-case-study", "--seconds", "-1"],
        ["--id", "hexgen-case-study", "--stages", "81"],
        ["--id", "hexgen-case-study", "--cost", "flow"],
    ],
)
def test_bad_flags_end_with_code_two(
    cluster_file: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    assert main(["plan", "--instance", str(cluster_file), *flags]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_what_if_and_pictures(
    cluster_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["plan", "--instance", str(cluster_file), "--id", "hexgen-case-study"]
    base += ["--explain", "--seconds", "0"]
    assert main([*base, "--svg", str(tmp_path / "layers.svg")]) == 0
    assert (tmp_path / "layers.svg").read_text().startswith("<svg")
    assert main([*base, "--without", "a4000-0", "--add", "2xA5000@dc"]) == 0
    assert "added-0/0" in capsys.readouterr().out


def test_simulation_prints_shares_and_percentiles(
    cluster_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["simulate", "--instance", str(cluster_file), "--id", "hexgen-case-study"]
    arguments += ["--search", "symmetric", "--rate", "0.2", "--requests", "50", "--json"]
    for batching in ("continuous", "none"):
        assert main([*arguments, "--batching", batching]) == 0
        said = json.loads(capsys.readouterr().out)
        assert 0 <= said["slo_attainment"] <= 1
        assert said["p50_seconds"] <= said["p99_seconds"]


def texts_of(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter() if "text" in node.tag]


def test_attainment_is_drawn_against_deadline_and_against_rate(
    cluster_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "deadline.svg", tmp_path / "rate.svg"]
    arguments = ["simulate", "--instance", str(cluster_file), "--id", "hexgen-case-study"]
    arguments += ["--search", "symmetric", "--rate", "0.5", "--requests", "40"]
    assert main([*arguments, "--svg", str(files[0]), "--rate-svg", str(files[1])]) == 0
    deadline, rate = (texts_of(file.read_text()) for file in files)
    assert {"100%", "0.5 requests/s", "8 requests/s"} <= set(deadline)
    assert {"100%", "SLO scale 5", "requests/s, logarithmic"} <= set(rate)
    assert "tokens/s" in capsys.readouterr().out


def test_explaining_names_shares_and_what_each_pipeline_does(
    cluster_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "--instance", str(cluster_file), "--id", "hexgen-case-study"]
    assert main([*arguments, "--objective", "throughput", "--explain"]) == 0
    said = capsys.readouterr().out
    assert "pipeline 1: a request alone 8.016 s" in said
    rows = [line for line in said.splitlines() if "a4000-0/1" in line and "224" in line]
    assert len(rows) == 1
    assert all(len(line) <= 80 for line in rows)
    assert "pipeline 1: a6000-0/0 holds the embedding, a4000-0/1 holds the head" in said


def test_simulating_says_the_share_within_the_deadline_that_was_asked_for(
    cluster_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["simulate", "--instance", str(cluster_file), "--id", "hexgen-case-study"]
    base += ["--search", "symmetric", "--requests", "50", "--rate", "0.2"]
    for flags, shown in (
        (["--deadline", "9"], "within the deadline of 9 s"),
        (["--objective", "slo"], "within the deadline of 10 s"),
        ([], "at SLO scale 5"),
    ):
        assert main([*base, *flags]) == 0
        said = capsys.readouterr().out
        assert shown in said
        assert ("within the deadline" in said) == bool(flags)
    assert main([*base, "--deadline", "9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["deadline_seconds"] == 9
    assert 0 <= found["in_time"] <= 1


def test_a_chart_of_one_point_has_a_tick_at_it() -> None:
    text = curves_chart("one", ("seconds", "tokens/s"), {"": [(3.25, 40.0)]})
    assert ">3.25<" in text


def test_equal_devices_of_the_last_stage_trade_for_the_head_too(tmp_path: Path) -> None:
    model = {"layers": 24, "hidden": 4096, "kv_heads": 8, "head_dim": 128, "ffn": 11008}
    model |= {"ffn_gated": True, "vocab": 128256, "params_per_layer": 177_209_344}
    machines = [{"id": "box", "gpu": "3060-12G", "count": 2}]
    file = tmp_path / "cluster.json"
    entry = {"id": "x", "model": "m", "machines": machines}
    file.write_text(json.dumps({"models": {"m": model}, "instances": [entry]}))
    problem = read_instance(read_file(file), "x").problem
    (pipeline,) = best_plan(problem, never).pipelines
    (stage,) = pipeline.stages
    assert len(stage.shards) == 2
    criterion = latency_criterion(problem)
    place = Place(stage.layers, first=True, last=True)
    assert refined_split(problem, criterion, place, stage.shards) == stage.shards
    best = true_seconds(problem, criterion, place, stage.shards)
    for moved in _moves(problem, stage.shards, 1):
        assert true_seconds(problem, criterion, place, moved) >= best * (1 - 1e-6)


def test_events_after_the_last_answer_do_not_thin_the_rate(world: Callable[..., Any]) -> None:
    problem = world(0, devices=5, layers=4)
    plan = best_plan(problem, never)
    trace = poisson_trace(5.0, 20, [24.0], [40.0], 0)
    cost = CostModel(problem)
    quiet = Simulation(cost, plan, batching=True).run(trace)
    late = Event(quiet.span_seconds + 1000, leave=(problem.devices[0].id,))
    assert Simulation(cost, plan, batching=True).run(trace, [late]) == quiet
