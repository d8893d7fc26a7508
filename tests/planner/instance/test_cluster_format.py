"""The page on the cluster format: its example plans, its table of GPUs is the planner's."""

import json
import re
from pathlib import Path

import pytest

from planner.cli.commands import main
from planner.instance.gpu_catalog import GPUS
from tests.planner.instance.test_model_config import LLAMA

PAGE = (Path(__file__).parents[3] / "docs" / "cluster-format.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_plans_and_plays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert example
    small = LLAMA | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    (tmp_path / "Llama-2-7b").mkdir()
    (tmp_path / "Llama-2-7b" / "config.json").write_text(json.dumps(small))
    file = tmp_path / "home.json"
    file.write_text(example[1])
    asks = re.findall(r"^    swarm (.*home\.json.*)$", PAGE, re.MULTILINE)
    assert len(asks) == 3
    for ask in asks:
        assert main(ask.replace("home.json", str(file)).split()) == 0, capsys.readouterr().err
    assert "within the deadline of 20 s" in capsys.readouterr().out


def test_the_table_of_gpus_is_that_of_the_planner() -> None:
    rows = re.findall(r"^\| (\S+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    shown = {name: tuple(map(float, figures)) for name, *figures in rows}
    assert shown == {name: tuple(gpu.values()) for name, gpu in GPUS.items()}


def test_every_field_that_is_read_is_described() -> None:
    source = "".join(
        (Path(__file__).parents[3] / "planner" / f"{name}.py").read_text(encoding="utf-8")
        for name in ("instance/cluster_file", "cli/simulate_report", "instance/required_fields")
    )
    read = re.findall(
        r"\.(?:text|text_or|number|numbers|count|optional|section|section_or_empty"
        r'|sections|has)\(\s*"(\w+)"',
        source,
    )
    assert len(set(read)) > 25
    assert [name for name in sorted(set(read)) if name not in PAGE] == []
