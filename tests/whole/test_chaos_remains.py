"""What `benchmarks/chaos` counts as left behind: processes, sockets, temporary files."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.chaos.remains import Remains, temporary_files_in
from swarm.p2p.p2pd_process import STALE_SECONDS
from swarm.state_folder import write_private

WAITS = "import sys; print(flush=True); sys.stdin.read()"


@contextmanager
def daemon(folder: Path, name: str) -> Iterator[tuple[psutil.Process, Path]]:
    """A process that looks like p2pd, and the socket of which its command line tells."""
    program, at = folder / "p2pd", folder / f"{name}.sock"
    if not program.exists():
        program.symlink_to(sys.executable)
    command = [str(program), "-ISc", WAITS, f"-listen=/unix{at}"]
    pipe = subprocess.PIPE
    with (
        socket.socket(socket.AF_UNIX) as listening,
        subprocess.Popen(command, stdin=pipe, stdout=pipe) as started,
    ):
        listening.bind(str(at))
        assert started.stdout
        started.stdout.readline()
        yield psutil.Process(started.pid), at
        started.kill()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state" / "node"
    folder.mkdir(parents=True)
    return folder.parent


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    with temporary_files_in(tmp_path / "tmp") as folder:
        yield folder


def test_a_socket_counts_if_its_daemon_ended_in_order_or_long_before_another_was_started(
    tmp_path: Path, state: Path, temporary: Path
) -> None:
    remains = Remains()
    with daemon(tmp_path, "killed") as (first, _), daemon(tmp_path, "stale") as (second, stale):
        remains.note([first, second])
    long_ago = time.time() - STALE_SECONDS - 10.0
    os.utime(stale, (long_ago, long_ago))
    with daemon(tmp_path, "ended") as (third, ended):
        remains.note([third])
        remains.note_end()
    remains.look(state, temporary)
    assert {*remains.sockets} == {str(stale), str(ended)}
    assert remains.processes == []


def test_a_daemon_that_lives_on_counts(tmp_path: Path, state: Path, temporary: Path) -> None:
    remains = Remains()
    with daemon(tmp_path, "alive") as (process, _):
        remains.note([process])
        remains.look(state, temporary, patience_seconds=0.0)
    assert len(remains.processes) == 1


def test_what_a_node_wrote_half_and_what_it_left_among_temporary_files_counts(
    state: Path, temporary: Path
) -> None:
    write_private(state / "node" / "ledger", b"whole")
    handle, half = tempfile.mkstemp(prefix=".ledger-", dir=state / "node")
    os.close(handle)
    (temporary / "swarm-measuring-0-abc.lock").touch()
    (temporary / "swarm-0").mkdir()
    made = Path(tempfile.mkdtemp(prefix="swarm-"))
    remains = Remains()
    with socket.socket(socket.AF_UNIX) as own, socket.socket(socket.AF_UNIX) as killed:
        own.bind(str(state / "node" / "control"))
        (state / "killed").mkdir()
        killed.bind(str(state / "killed" / "control"))
        remains.look(state, temporary, ["node"])
    assert remains.sockets == [str(state / "node" / "control")]
    assert made.parent == temporary
    assert remains.files == [str(Path(half).relative_to(state)), made.name]
