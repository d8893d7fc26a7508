"""A command that only asks reads models and tokenizers as others do, and never loads torch."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from client.request import LocalModel
from swarm import cli
from swarm.checkpoint.folder import find_model
from swarm.commands.hidden_torch import ASKING
from swarm.model_spec import BUILT_IN

TEXT = "Once upon a time there was a lighthouse."
CHANGES = {
    "dtype": "bfloat16",
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
}
READING = """
import json, sys
from dataclasses import asdict
from swarm.checkpoint.folder import find_model
from swarm.commands.hidden_torch import hide_torch
hide_torch()
from client.async_client import Client
from client.request import LocalModel
import swarm.network
for name in sys.argv[2:]:
    model = LocalModel.read(name)
    ids = model.tokenizer.ids_of_text(sys.argv[1])
    print(json.dumps([asdict(model.spec), ids, model.tokenizer.text_of(ids)]))
assert sys.modules["torch"] is None and not [m for m in sys.modules if m.startswith("torch.")]
"""


def read(name: str) -> list[Any]:
    model = LocalModel.read(name)
    ids = model.tokenizer.ids_of_text(TEXT)
    return [asdict(model.spec), ids, model.tokenizer.text_of(ids)]


def changed(parent: Path) -> Path:
    """The built-in model with what transformers looks at with torch, if it has it."""
    folder = parent / "changed"
    copytree(find_model(BUILT_IN), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | CHANGES))
    return folder


def test_models_and_tokenizers_are_read_alike_without_torch(tmp_path: Path) -> None:
    names = [BUILT_IN, str(changed(tmp_path))]
    done = subprocess.run(
        [sys.executable, "-c", READING, TEXT, *names], capture_output=True, text=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == json.loads(json.dumps([read(name) for name in names])), done.stderr
    assert "PyTorch was not found" not in done.stderr


@pytest.mark.parametrize("command", [*sorted(ASKING), "demo", "node", "status", "--help", ""])
def test_only_commands_that_ask_hide_it(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(sys, "argv", ["swarm", *filter(None, [command])])
    monkeypatch.setattr(cli, "hide_torch", lambda: done.append("hidden"))
    monkeypatch.setattr(cli, "main", lambda: 0)
    monkeypatch.setattr(cli, "leave", lambda _code: done.append("left"))
    cli.run()
    assert done == (["hidden", "left"] if command in ASKING else ["left"])


def test_commands_that_ask_are_commands() -> None:
    assert cli.COMMANDS.keys() >= ASKING
