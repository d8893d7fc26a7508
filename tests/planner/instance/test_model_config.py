"""A model from a Hugging Face config.json, as a cluster file may name it."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.cli.commands import main
from planner.instance.cluster_file import read_file, read_instance
from planner.instance.fields import Fields
from planner.instance.model_config import model_fields
from swarm.errors import BadInput

LLAMA = {  # Llama 2 70B
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}


def fields_of(**more: Any) -> dict[str, Any]:
    return model_fields(Fields(LLAMA | more, "", "config.json"))


def test_a_config_says_what_the_benchmark_file_says(cluster_file: Path) -> None:
    written = read_file(cluster_file).section("models").section("llama-2-70b").values
    found = fields_of()
    assert found == {name: written[name] for name in found}


def test_models_without_groups_or_gates_are_counted_as_they_are() -> None:
    plain = fields_of(model_type="gpt_neox", num_key_value_heads=None, head_dim=64)
    assert plain["kv_heads"] == 64
    assert plain["params_per_layer"] == 4 * 8192 * 64 * 64 + 2 * 8192 * 28672
    assert plain["ffn_gated"] is False


def test_a_mixture_of_experts_is_refused_rather_than_miscounted() -> None:
    with pytest.raises(BadInput, match="num_local_experts makes it a mixture of experts"):
        fields_of(num_local_experts=8)


def test_a_cluster_file_may_name_a_folder_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(LLAMA))
    machines = [{"id": "box", "gpu": "H100", "count": 4}]
    file = tmp_path / "cluster.json"
    for model in ("llama", "./llama", "llama/config.json", str(tmp_path / "llama")):
        entry = {"id": "x", "model": model, "machines": machines}
        file.write_text(json.dumps({"instances": [entry]}))
        problem = read_instance(read_file(file), "x").problem
        assert (problem.model.name, problem.model.layers) == ("llama", 80)
    assert main(["plan", "--instance", str(file)]) == 0
    assert "box/3 H100" in capsys.readouterr().out


def test_a_config_that_lacks_something_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    entry = {"id": "x", "model": "config.json", "machines": [{"id": "box", "gpu": "H100"}]}
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps({"instances": [entry]}))
    assert main(["plan", "--instance", str(file)]) == 2
    assert "config.json: hidden_size is missing" in capsys.readouterr().err
