"""MachineLock: what only one process of a machine does at a time, as far as one user's go."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MachineLock:
    """A lock on a file that all processes of the machine agree on; it ends with its holder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Whether the lock could be taken at once; it is held until the end of the block.

        Where there can be no such file everybody is alone.
        """
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            yield True
            return
        try:
            yield _is_taken(file)
        finally:
            os.close(file)


def lock_of_machine(purpose: str, machine: str) -> MachineLock:
    """The lock of this user's processes on one machine."""
    return MachineLock(Path(tempfile.gettempdir(), f"swarm-{purpose}-{os.getuid()}-{machine}.lock"))


def _is_taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
