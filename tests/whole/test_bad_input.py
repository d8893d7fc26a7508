"""What a person can get wrong when starting a node: one sentence, a next step, exit code 2."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import copy, copytree

import pytest

from swarm.cli import main
from tests.whole.reference_model import TINY
from tests.whole.swarms import environment

pytestmark = pytest.mark.nodes

SECONDS = 150.0  # several processes import torch at once on a busy machine


def assert_one_sentence(code: int, out: str, error: str, words: str) -> None:
    """Exit code 2, and on stderr one line that says the cause and what to do."""
    assert code == 2, error
    assert "Traceback" not in out + error
    (line,) = error.strip().splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert line.count(". ") + line.count("; ") >= 1, "the next step is missing"


# ---------------------------------------------------------------- as a process


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """What became of nodes that cannot start, all started at once."""
    folder = tmp_path_factory.mktemp("bad")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        asked: dict[str, Sequence[str]] = {
            "port in use": ["--host", "--port", str(port)],
            "malformed invite": ["--join", "swarm1:AAAA"],
            "unknown model": ["--host", "--model", "no-such-owner/no-such-model"],
        }
        started = {
            name: subprocess.Popen(
                [
                    *(sys.executable, "-m", "swarm.node", *words),
                    *("--listen", "127.0.0.1", "--state", str(folder / name)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(folder),
            )
            for name, words in asked.items()
        }
        found = {}
        for name, process in started.items():
            out, error = process.communicate(timeout=SECONDS)
            found[name] = process.returncode, out, error
        return found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("port in use", "is in use"),
        ("malformed invite", "truncated or altered"),
        ("unknown model", "no-such-owner/no-such-model"),
    ],
)
def test_a_node_that_cannot_start_says_why_and_exits_with_code_2(
    ended: dict[str, tuple[int, str, str]], name: str, words: str
) -> None:
    assert_one_sentence(*ended[name], words)


# ---------------------------------------------------------------- through main, in this process


@pytest.fixture
def run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> "Run":
    monkeypatch.delenv("SWARM_INVITE", raising=False)
    monkeypatch.setattr("resource.setrlimit", lambda *_limits: None)  # this process is pytest's
    return Run(tmp_path, capsys)


class Run:
    """Runs a node's main in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        state = ["--state", str(self.folder / "state"), "--listen", "127.0.0.1"]
        before = signal.getsignal(signal.SIGINT)
        code = main(["node", *state, *words])
        assert signal.getsignal(signal.SIGINT) is before
        return code, *self._capsys.readouterr()

    def model(self, **changes: object) -> Path:
        """A copy of swarm-tiny with another config."""
        folder = self.folder / "model"
        copytree(TINY, folder)
        config = json.loads((TINY / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        return folder


def test_a_folder_without_a_config_is_refused(run: Run) -> None:
    empty = run.folder / "empty"
    empty.mkdir()
    assert_one_sentence(*run("--host", "--model", str(empty)), "no config.json")


def test_a_folder_that_is_not_there_is_refused(run: Run) -> None:
    gone = run.folder / "gone"
    assert_one_sentence(*run("--host", "--model", str(gone)), "There is no folder")


def test_pickled_weights_are_refused(run: Run) -> None:
    folder = run.model()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    assert_one_sentence(*run("--host", "--model", str(folder)), "only pickled weights")


def test_weights_that_are_missing_are_refused(run: Run) -> None:
    folder = run.folder / "no weights"
    folder.mkdir()
    copy(TINY / "config.json", folder)
    assert_one_sentence(*run("--host", "--model", str(folder)), "no safetensors weights")


def test_damaged_weights_are_refused(run: Run) -> None:
    folder = run.model()
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    assert_one_sentence(*run("--host", "--model", str(folder)), "cannot be read")


@pytest.mark.parametrize("architecture", ["bert", "mamba", "", 7])
def test_an_unsupported_architecture_is_refused_by_name_with_the_list(
    run: Run, architecture: object
) -> None:
    folder = run.model(model_type=architecture)
    code, out, error = run("--host", "--model", str(folder))
    assert_one_sentence(code, out, error, repr(str(architecture)))
    assert "llama" in error
    assert "qwen3" in error


def test_a_config_without_the_type_of_its_model_is_refused(run: Run) -> None:
    folder = run.model(model_type=None)
    assert_one_sentence(*run("--host", "--model", str(folder)), "model_type")


def test_a_config_that_is_no_json_is_refused(run: Run) -> None:
    folder = run.model()
    (folder / "config.json").write_text("{")
    assert_one_sentence(*run("--host", "--model", str(folder)), "not valid JSON")


@pytest.mark.parametrize("changes", [{"num_hidden_layers": "many"}, {"vocab_size": None}])
def test_a_config_with_nonsense_in_it_is_refused(run: Run, changes: dict[str, object]) -> None:
    folder = run.model(**changes)
    assert_one_sentence(*run("--host", "--model", str(folder)), "config.json")


def test_no_invite_at_all_is_refused(run: Run) -> None:
    assert_one_sentence(*run("--join"), "No invite is given, and none is remembered")


@pytest.mark.parametrize("invite", ["hello", "swarm9:AAAA", "swarm1:" + "A" * 9000, "🦊"])
def test_a_malformed_invite_is_refused(run: Run, invite: str) -> None:
    assert_one_sentence(*run("--join", invite), "nvite")


def test_a_swarm_with_a_strange_name_is_refused(run: Run) -> None:
    assert_one_sentence(*run("--host", "--swarm", "a/b"), "cannot name a swarm")


def test_a_port_out_of_range_is_refused(run: Run) -> None:
    assert_one_sentence(*run("--host", "--port", "70000"), "--port")


def test_an_address_that_is_not_ours_is_refused(run: Run) -> None:
    told = run("--host", "--listen", "203.0.113.7")
    assert_one_sentence(*told, "203.0.113.7 is no address of this machine")


def test_a_damaged_key_is_refused(run: Run) -> None:
    folder = run.folder / "state" / "node-1"
    folder.mkdir(parents=True)
    (folder / "identity.key").write_bytes(b"half a key")
    assert_one_sentence(*run("--host"), "is not a key of Swarm")
