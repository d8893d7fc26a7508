"""GPUs are asked for in a process of its own: the node's has no context on them."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from node import probe
from node.probe import detect
from node.worker.gpu_report import read_gpus

FAKE_TORCH = """
import os
from types import SimpleNamespace

print("a driver says hello")
version = SimpleNamespace(hip=None)
cuda = SimpleNamespace(
    device_count=lambda: 2,
    mem_get_info=lambda index: ((index + 1) * 10**9, 4 * 10**9),
    get_device_name=lambda index: f"GPU {index}, asked by {os.getpid()}",
    get_device_capability=lambda index: (7 + index, 0),
)
"""
ASKING = """
import sys
import node.main
from node import probe
probe._may_have_gpus = lambda: True
print([each.kind for each in probe.detect()], "torch" in sys.modules)
"""


def put_torch(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Let every process that is started from now on import this as torch."""
    (folder / "torch.py").write_text(source)
    path = os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    monkeypatch.setenv("PYTHONPATH", path)


def test_gpus_are_what_torch_says_in_another_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_torch(tmp_path, monkeypatch, FAKE_TORCH)
    monkeypatch.setattr(probe, "_may_have_gpus", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: pytest.fail("a context is opened"))
    found = detect(share=0.5)
    assert [each.torch_name for each in found] == ["cuda:0", "cuda:1"]
    assert [each.memory_bytes for each in found] == [5 * 10**8, 10**9]
    assert [each.total_bytes for each in found] == [4 * 10**9] * 2
    assert [each.dtypes for each in found] == [("f16", "f32"), ("bf16", "f16", "f32")]
    assert found[0].name.startswith("GPU 0, asked by ")
    assert not found[0].name.endswith(f" {os.getpid()}")


def test_a_node_that_has_found_its_gpus_has_not_loaded_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_torch(tmp_path, monkeypatch, FAKE_TORCH)
    done = subprocess.run([sys.executable, "-c", ASKING], capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "['cuda', 'cuda'] False", done.stderr


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("raise RuntimeError('no kernel image')", "RuntimeError: no kernel image"),
        ("import os; os._exit(139)", "it ended with code 139"),
        ("import os; print('hello', flush=True); os._exit(0)", "Expecting value"),
    ],
)
def test_gpus_that_cannot_be_asked_are_left_out_with_the_cause(
    source: str,
    cause: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put_torch(tmp_path, monkeypatch, source)
    with caplog.at_level(logging.WARNING):
        assert read_gpus() == []
    assert cause in caplog.text
