"""The doors: one object under two names, and a clear word when a script hides a room."""

import subprocess
import sys
from pathlib import Path

import pytest

from swarm.doors import open_room
from swarm.errors import BadInput


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=60
    )


def test_from_swarm_import_client_is_import_client(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from swarm import client\nimport client as same\nimport swarm.client\n"
        "assert client is same is swarm.client\nassert client.generate and client.Client\n"
    )
    done = run(str(script), folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_script_called_client_is_told_to_take_another_name(tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text("from swarm import client\n")
    done = run(str(script), folder=tmp_path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert f"{script} hides Swarm's own package 'client'." in last
    assert "Rename it" in last


def test_a_script_called_node_is_told_too_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "node.py").touch()
    done = run("-m", "swarm.node", "--host", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Rename it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_room_that_is_not_ours_is_never_opened() -> None:
    with pytest.raises(BadInput, match="json"):
        open_room("json.decoder")
    with pytest.raises(BadInput, match="nowhere"):
        open_room("nowhere")
