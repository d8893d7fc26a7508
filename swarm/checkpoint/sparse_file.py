"""SparseFile: a weight file of which only some bytes are here - holes, and a map of the rest.

`x.safetensors` has the size of the whole file; `x.safetensors.map` says which bytes of it are real.
Where there is no map, the whole file is. Several processes may fill one file at a time: they write
the same bytes, and change the map under a lock.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from swarm.checkpoint.byte_ranges import NOTHING, ByteRanges, merged, without
from swarm.errors import BadModel


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the source says of a file: its size in bytes, and a tag of its version."""

    size: int
    etag: str


class SparseFile:
    """One file to fill."""

    def __init__(self, path: Path, facts: FileFacts) -> None:
        """Make the file, or go on with it if it is of the same version; raises OSError."""
        self.path, self.facts = path, facts
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            known = _read_map(path)
            if not path.is_file() or known is None or known[0] != facts:
                self._write_map(NOTHING)  # first: a file without a map counts as whole
                path.unlink(missing_ok=True)
            with path.open("ab") as file:
                file.truncate(facts.size)

    @classmethod
    def again(cls, path: Path) -> "SparseFile | None":
        """A file that was begun before; None if it is whole, or not here; raises OSError."""
        known = _read_map(path)
        return cls(path, known[0]) if known else None

    def missing(self, wanted: ByteRanges) -> ByteRanges:
        """The bytes of `wanted` that are not here."""
        return missing(self.path, wanted)

    def write(self, start: int, data: bytes) -> None:
        """Put bytes in their place; they count once they are noted; raises OSError."""
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(descriptor, view, start)
                view, start = view[written:], start + written
        finally:
            os.close(descriptor)

    def note(self, ranges: ByteRanges) -> None:
        """Say that these bytes are written; holds after a loss of power too; raises OSError."""
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        with _lock(self.path):
            self._write_map(merged([*_present(self.path), *ranges]))

    def read(self, start: int, end: int) -> bytes:
        """Bytes of the file; raises OSError."""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def _write_map(self, present: ByteRanges) -> None:
        target = _map_of(self.path)
        fresh = target.with_suffix(f".{os.getpid()}.new")
        facts = {"size": self.facts.size, "etag": self.facts.etag}
        with fresh.open("w") as file:
            json.dump(facts | {"present": present}, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target)


def missing(path: Path, wanted: ByteRanges) -> ByteRanges:
    """The bytes of `wanted` that a weight file, sparse or whole, lacks; raises BadModel."""
    return without(wanted, _present(path)) if _map_of(path).exists() else NOTHING


def present(path: Path) -> ByteRanges:
    """The bytes of a weight file that are here; raises OSError."""
    return _present(path) if _map_of(path).exists() else ((0, path.stat().st_size),)


def _present(path: Path) -> ByteRanges:
    known = _read_map(path)
    return known[1] if known else NOTHING


def _read_map(path: Path) -> tuple[FileFacts, ByteRanges] | None:
    try:
        known = json.loads(_map_of(path).read_text())
        ranges = merged((int(start), int(end)) for start, end in known["present"])
        return FileFacts(int(known["size"]), str(known["etag"])), ranges
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(
            f"{_map_of(path)} cannot be read.", f"Delete the folder {path.parent}."
        ) from error


def _map_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.map")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.with_name(f"{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
