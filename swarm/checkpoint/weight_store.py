"""WeightStore: the partial copy of one model on this disk, and the source of the rest."""

import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub.utils import tqdm

from swarm.checkpoint.byte_ranges import ByteRanges, size_of
from swarm.checkpoint.safetensors_headers import PREFIX_BYTES, header_end
from swarm.checkpoint.sparse_file import FileFacts, SparseFile
from swarm.errors import EngineError
from swarm.formatting import bytes_text

logger = logging.getLogger(__name__)

NOTE_BYTES = 1 << 26  # so many bytes are lost at most when the power is
SPARE_BYTES = 1 << 24  # to be left on the disk

BAR: Any = tqdm  # silent where nobody watches
Take = Callable[[int, bytes], None]  # position in the file, bytes; from any thread
Wanted = Mapping[str, ByteRanges]  # by file name


class Source(Protocol):
    """Where the bytes of a model's weight files come from."""

    name: str  # for people

    def fetch(self, file: str, facts: FileFacts, ranges: ByteRanges, take: Take) -> None:
        """Hand over bytes of just this version, in any order; blocks; raises SwarmError."""


class FetchProgress:
    """Hears how a fetch goes on, from any thread, and may stop it."""

    def __init__(self, on_bytes: Callable[[int, int], None] | None = None) -> None:
        self._on_bytes = on_bytes
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.done = self.total = 0

    def begin(self, total: int) -> None:
        """So many bytes will come."""
        self.total = total

    def came(self, count: int) -> None:
        """Some of them came; raises EngineError if nobody wants the rest any more."""
        if self._stop.is_set():
            raise EngineError("The node has other plans with this device.")
        with self._lock:
            self.done += count
            if self._on_bytes:
                self._on_bytes(self.done, self.total)

    def stop(self) -> None:
        """End the fetch at its next byte."""
        self._stop.set()


class WeightStore:
    """One model's folder, whose weight files are filled as they are wanted."""

    def __init__(self, folder: Path, source: Source) -> None:
        self.folder, self.source = folder, source
        self._one_at_a_time = threading.Lock()

    def read_header(self, sparse: SparseFile) -> None:
        """Fetch the header of one file; blocks; raises SwarmError."""
        self._fill(
            {sparse.path.name: ((0, min(PREFIX_BYTES, sparse.facts.size)),)}, FetchProgress()
        )
        end = header_end(sparse.read(0, PREFIX_BYTES), str(sparse.path))
        self._fill({sparse.path.name: ((0, min(end, sparse.facts.size)),)}, FetchProgress())

    def missing(self, wanted: Wanted) -> dict[str, ByteRanges]:
        """What of `wanted` is not on the disk; raises BadModel, EngineError."""
        found = {}
        for name, ranges in wanted.items():
            sparse = SparseFile.again(self.folder / name)
            if sparse and (left := sparse.missing(ranges)):
                found[name] = left
        return found

    def ensure(self, wanted: Wanted, progress: FetchProgress) -> int:
        """Fetch what is missing, with a progress bar; returns its bytes; raises SwarmError."""
        with self._one_at_a_time:
            missing = self.missing(wanted)
            total = sum(map(size_of, missing.values()))
            progress.begin(total)
            if total:
                self._require_room(total)
                title = f"weights from {self.source.name}"
                with BAR(total=total, unit="B", unit_scale=True, desc=title, disable=None) as bar:
                    self._fill(missing, progress, bar.update)
                logger.info("fetched %d bytes from %s", total, self.source.name)
        return total

    def _fill(
        self, wanted: Wanted, progress: FetchProgress, show: Callable[[int], object] | None = None
    ) -> None:
        for name, ranges in wanted.items():
            sparse = SparseFile.again(self.folder / name)
            left = sparse.missing(ranges) if sparse else ()
            if sparse and left:
                with _Filling(sparse, progress, show) as filling:
                    self.source.fetch(name, sparse.facts, left, filling.take)

    def _require_room(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < size + SPARE_BYTES:
            raise EngineError(
                f"{bytes_text(size)} of weights do not fit beside {self.folder}:"
                f" {bytes_text(free)} are free.",
                "Free some space, or set HF_HOME to a folder on another disk.",
            )


class _Filling:
    """Bytes on their way into one file; what came is noted even if the rest never does."""

    def __init__(
        self, sparse: SparseFile, progress: FetchProgress, show: Callable[[int], object] | None
    ) -> None:
        self._sparse, self._progress, self._show = sparse, progress, show
        self._lock = threading.Lock()
        self._fresh: list[tuple[int, int]] = []

    def __enter__(self) -> "_Filling":
        return self

    def __exit__(self, *_: object) -> None:
        self._note(0)

    def take(self, start: int, data: bytes) -> None:
        """Write bytes where they belong."""
        with _disk_errors(self._sparse.path):
            self._sparse.write(start, data)
        with self._lock:
            self._fresh.append((start, start + len(data)))
            if self._show:
                self._show(len(data))
        self._note(NOTE_BYTES)
        self._progress.came(len(data))

    def _note(self, at_least: int) -> None:
        with self._lock:
            if size_of(self._fresh) > at_least:
                with _disk_errors(self._sparse.path):
                    self._sparse.note(tuple(self._fresh))
                self._fresh.clear()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineError(
            f"Weights cannot be written to {path}: {error.strerror}.",
            "Free some space, or set HF_HOME to a folder on another disk.",
        ) from error
