"""What nodes leave behind: processes, sockets, and temporary files in their folders and elsewhere.

Memory that workers share has no name in any file system, and ends with them.
"""

import os
import re
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from swarm.p2p.p2pd_process import STALE_SECONDS

SOCKETS = re.compile(r"/unix(/\S+\.sock)")  # in the command line of a p2pd
ENDED_SECONDS = 5.0  # for families of killed nodes to see that they have to end
TEMPORARY = re.compile(r"\.(?P<file>.+)-[a-z0-9_]{8}")  # while a file is written beside itself
STAYING = re.compile(r"swarm-\S+\.lock|swarm-\d+|torchinductor_\S+")  # locks, meeting place, cache


def is_daemon(process: psutil.Process) -> bool:
    """Whether a process is a p2pd."""
    try:
        return process.name() == "p2pd"
    except psutil.NoSuchProcess:
        return False


@dataclass(slots=True)
class Remains:
    """What was left when all nodes had ended, of whatever processes were noted before."""

    processes: list[str] = field(default_factory=list)
    sockets: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)  # about nodes that ended badly
    _families: set[int] = field(default_factory=set)
    _daemons: dict[int, list[Path]] = field(default_factory=dict)  # their sockets
    _ending: set[int] = field(default_factory=set)  # those that ended last, in order
    _started: float = 0.0  # when the last p2pd was, which removes stale sockets

    def note(self, family: Iterable[psutil.Process]) -> None:
        """Remember these processes and their sockets."""
        for each in family:
            self._families.add(each.pid)
            if is_daemon(each) and each.pid not in self._daemons:
                self._daemons[each.pid] = [Path(p) for p in SOCKETS.findall(_words_of(each.pid))]
                self._started = max(self._started, each.create_time())

    def note_end(self) -> None:
        """From now on nodes end in order only."""
        self._ending = {pid for pid in self._daemons if _words_of(pid)}

    def look(
        self,
        state: Path,
        temporary: Path,
        ended: Iterable[str] = (),
        patience_seconds: float = ENDED_SECONDS,
    ) -> None:
        """See what is left of all that was noted, in the folders of nodes, and in the last one.

        `ended` are the nodes that ended in order: a killed one removes its socket when it is back.
        """
        deadline = time.monotonic() + patience_seconds
        while self._left_processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        self.processes = self._left_processes()
        own = [path for name in ended for path in _sockets_in(state / name)]
        self.sockets = [str(path) for path in (*self._left_sockets(), *own)]
        self.files = [*_temporaries_in(state), *_strangers_in(temporary)]

    def _left_processes(self) -> list[str]:
        words = map(_words_of, self._families)
        return [each for each in words if "node.worker" in each or "p2pd" in each]

    def _left_sockets(self) -> list[Path]:
        """Of daemons that ended in order; those of killed ones are removed when they are stale."""
        stale = self._started - STALE_SECONDS
        return [
            path
            for pid, paths in self._daemons.items()
            for path in paths
            if path.exists() and (pid in self._ending or path.stat().st_mtime < stale)
        ]


def _words_of(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        gone = process.status() == psutil.STATUS_ZOMBIE
        return "" if gone else " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _sockets_in(state: Path) -> Iterator[Path]:
    return (path for path in state.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode))


def _temporaries_in(state: Path) -> list[str]:
    found = (path for path in state.rglob(".*") if TEMPORARY.fullmatch(path.name))
    return [str(path.relative_to(state)) for path in found]


def _strangers_in(temporary: Path) -> list[str]:
    return [each.name for each in temporary.iterdir() if not STAYING.fullmatch(each.name)]


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[Path]:
    """Let this process, and those that it starts, put temporary files there and nowhere else."""
    folder.mkdir()
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        os.environ.pop("TMPDIR")
        if before[0] is not None:
            os.environ["TMPDIR"] = before[0]
        tempfile.tempdir = before[1]
