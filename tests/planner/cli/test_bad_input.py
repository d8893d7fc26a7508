"""Bad input ends with code 2 and one line that names the field (or flag) and the file."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from planner.cli.commands import main

Say = Callable[[Sequence[str | int], Any], str]
GONE = object()
NAME = "hexgen-case-study"
INSTANCE = ("instances", 0)
LLAMA = ("models", "llama-2-70b")


@pytest.fixture(scope="session")
def clusters(cluster_file: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(cluster_file.read_text())
    return data


@pytest.fixture
def said_of(clusters: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """What planning says of the cluster file with one value changed, or gone."""

    def say(path: Sequence[str | int], value: Any) -> str:
        data = copy.deepcopy(clusters)
        place: Any = data
        for step in path[:-1]:
            place = place[step]
        if value is GONE:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        file = tmp_path / "cluster.json"
        file.write_text(json.dumps(data))
        assert main(["plan", "--instance", str(file), "--id", NAME]) == 2
        said = capsys.readouterr().err
        assert len(said.strip().splitlines()) == 1
        assert str(file) in said
        return said

    return say


MISSING = [
    ("instances",),
    (*INSTANCE, "machines"),
    (*INSTANCE, "model"),
    (*INSTANCE, "network", "same_region"),
    (*INSTANCE, "network", "same_region", "lat_ms"),
    (*INSTANCE, "workload", "output_tokens"),
    (*INSTANCE, "machines", 1, "id"),
    (*INSTANCE, "machines", 1, "gpu"),
    (*INSTANCE, "machines", 1, "intra", "bw_GBps"),
    (*LLAMA, "layers"),
    (*LLAMA, "vocab"),
    ("gpu_types", "A5000", "tflops_dense_16bit"),
]


@pytest.mark.parametrize("path", MISSING, ids=lambda path: ".".join(map(str, path)))
def test_a_missing_field_is_named(said_of: Say, path: Sequence[str | int]) -> None:
    said = said_of(path, GONE)
    assert f"{path[-1]} is missing" in said
    assert all(str(step) in said for step in path if isinstance(step, str))


def test_everything_that_is_missing_is_named_at_once(
    clusters: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = copy.deepcopy(clusters)
    data["instances"] = data["instances"][:1]
    (entry,) = data["instances"]
    del entry["network"], entry["machines"][1]["gpu"], data["gpu_types"]["A4000"]["mem_GB"]
    del data["models"]["llama-2-70b"]["vocab"], data["models"]["llama-2-70b"]["ffn"]
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps(data))
    assert main(["plan", "--instance", str(file)]) == 2
    said = capsys.readouterr().err
    assert "instances[0].machines[1].gpu, models.llama-2-70b.ffn, models.llama-2-70b.vocab" in said
    assert "gpu_types.A4000.mem_GB, instances[0].network.same_region." in said
    assert "docs/cluster-format.md" in said


def test_what_goes_without_saying_may_be_left_out(
    clusters: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"models": clusters["models"]}
    model = "llama-1-30b"
    machines = [{"id": "box", "gpu": "A100-80G", "count": 2}]
    file = tmp_path / "cluster.json"
    file.write_text(
        json.dumps(data | {"instances": [{"id": "x", "model": model, "machines": machines}]})
    )
    assert main(["plan", "--instance", str(file)]) == 0
    assert "box/1 A100-80G" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        ("h100-sxm5", "the closest known are H100-SXM, H100, H100-PCIe; describe others"),
        ("abacus", "known are A100-40G"),
    ],
)
def test_an_unknown_gpu_is_told_from_those_known(said_of: Say, gpu: str, says: str) -> None:
    assert says in said_of((*INSTANCE, "machines", 1, "gpu"), gpu)


WRONG = [
    ((*LLAMA, "hidden"), -1, "hidden is -1"),
    ((*LLAMA, "layers"), 0, "layers is 0"),
    ((*LLAMA, "layers"), "80", "layers is '80'"),
    ((*LLAMA, "ffn_gated"), "yes", "ffn_gated must be true or false"),
    ((*LLAMA, "params_per_layer"), 5, "params_per_layer is 5"),
    (("gpu_types", "A5000", "hbm_GBps"), -3, "hbm_GBps is -3"),
    ((*INSTANCE, "network", "same_region", "lat_ms"), float("nan"), "lat_ms is nan"),
    ((*INSTANCE, "network", "same_region", "bw_Gbps"), 0, "bw_Gbps is 0"),
    ((*INSTANCE, "workload", "input_tokens"), [-5], "input_tokens.0 is -5"),
    ((*INSTANCE, "machines", 1, "count"), 1.5, "machines[1].count is 1.5"),
    ((*INSTANCE, "machines", 1, "count"), True, "machines[1].count is True"),
    ((*INSTANCE, "machines", 1, "count"), 10**9, "machines[1].count is 1000000000"),
    ((*INSTANCE, "machines", 1, "id"), "a6000-0", "machines use one id twice"),
    ((*INSTANCE, "machines", 1, "up_Mbps"), -1, "up_Mbps is -1"),
    ((*INSTANCE, "machines"), [], "machines hold no device"),
    ((*INSTANCE, "machines"), [[1]], "instances[0].machines must be a list of objects"),
    (("instances",), {}, "instances must be a list"),
]


@pytest.mark.parametrize(("path", "value", "why"), WRONG, ids=[why for _, _, why in WRONG])
def test_a_wrong_value_is_named(
    said_of: Say, path: Sequence[str | int], value: Any, why: str
) -> None:
    assert why in said_of(path, value)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--seconds", "soon"], "'soon' is not a number"),
        (["--seconds", "nan"], "not finite"),
        (["--rate", "0"], "--rate"),
        (["--stages", "1.5"], "whole number"),
        (["--without", "a6000-0/9"], "devices 0 to 3"),
        (["--without", "a6000-0/x"], "devices 0 to 3"),
        (["--without", "a6000-0", "--without", "a5000-0", "--without", "a4000-0"], "no device"),
        (["--add", "0x4090@dc"], "adds no device"),
        (["--add", "4090@moon"], "added-0 (moon)"),
        (["--svg", "/nowhere/at/all.svg", "--seconds", "0"], "/nowhere/at/all.svg"),
        (["--pareto-svg", "/nowhere/all.svg", "--seconds", "0"], "/nowhere/all.svg"),
    ],
)
def test_a_wrong_flag_is_named(
    cluster_file: Path, capsys: pytest.CaptureFixture[str], flags: list[str], why: str
) -> None:
    assert main(["plan", "--instance", str(cluster_file), "--id", NAME, *flags]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"'])
def test_a_file_that_is_no_cluster_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    file = tmp_path / "cluster.json"
    file.write_text(text)
    for path in (file, tmp_path, tmp_path / "nowhere.json"):
        assert main(["plan", "--instance", str(path), "--id", NAME]) == 2
        assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["latency", "throughput", "slo"])
def test_no_seconds_still_give_the_best_valid_plan_found(
    cluster_file: Path, capsys: pytest.CaptureFixture[str], objective: str
) -> None:
    flags = ["--id", NAME, "--seconds", "0", "--json", "--objective", objective]
    assert main(["plan", "--instance", str(cluster_file), *flags]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["plan"]["pipelines"]
    assert said["feasible"]


def test_without_one_device_takes_away_that_device(
    cluster_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--id", NAME, "--without", "a6000-0/1"]
    assert main(["plan", "--instance", str(cluster_file), *flags]) == 0
    said = capsys.readouterr().out
    assert "a6000-0/1" not in said
    assert "a6000-0/3" in said
