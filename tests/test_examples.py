"""Every example runs against a real node, and another one joins it: the README's commands."""

import io
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
INVITE = "invite: "
READY = "ready: "
LEAVE_SECONDS = 15


@contextmanager
def node(state: Path, *how: str) -> Iterator[list[str]]:
    """Hold a node process and what it said until it was ready."""
    command = [sys.executable, "-m", "swarm.node", *how, "--threads", "1"]
    command += ["--listen", "127.0.0.1", "--state", str(state)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(READY):
            break
    else:
        pytest.fail(f"the node ended: {''.join(lines)}")
    yield lines
    process.send_signal(signal.SIGINT)
    _, _ = process.communicate(timeout=LEAVE_SECONDS)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def invite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The invite of a node process that serves the built-in model alone."""
    with node(tmp_path_factory.mktemp("state"), "--host") as lines:
        yield next(line.removeprefix(INVITE).strip() for line in lines if line.startswith(INVITE))


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """Run an example in this process, where torch is loaded already; returns its output."""
    monkeypatch.setenv("SWARM_STATE", str(tmp_path))

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello!\nWhat is a swarm?\n"))
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


Run = Callable[..., str]


def test_generate_prints_text_and_route_as_a_program_of_its_own(invite: str) -> None:
    command = [sys.executable, str(EXAMPLES / "generate.py"), invite]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == "  layers [0,8) on 1 device(s)"
    assert "32 tokens" in lines[-2]


def test_stream_prints_the_same_for_the_same_seed(
    invite: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = run("stream.py", invite)
    assert shown.splitlines()[-1] in ("(stop)", "(length)")
    monkeypatch.setenv("SWARM_INVITE", invite)
    assert run("stream.py") == shown


def test_many_answers_every_prompt(invite: str, run: Run) -> None:
    shown = run("many.py", invite)
    for prompt in ("Once upon a time", "The planner", "A swarm is", "Long ago", "Water"):
        assert prompt in shown


def test_chat_answers_line_by_line(invite: str, run: Run) -> None:
    assert len(run("chat.py", invite).strip().splitlines()) >= 2


def test_a_node_that_joins_is_ready_and_the_text_stays_the_same(
    invite: str, run: Run, tmp_path: Path
) -> None:
    shown = run("stream.py", invite)
    with node(tmp_path / "state", "--join", invite):
        assert run("stream.py", invite) == shown
