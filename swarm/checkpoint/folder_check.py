"""FolderCheck: a copy of the swarm's model on this disk, each chunk checked before it is used.

The host's chunk index says what every chunk must be. What was found right once is remembered, until
its file changes; what is wrong is refused before it serves anybody.
"""

import asyncio
import logging
from pathlib import Path

from swarm.checkpoint.byte_ranges import ByteRanges, aligned
from swarm.checkpoint.chunk_digests import ChunkDigests
from swarm.checkpoint.chunk_index import Entry, slice_of
from swarm.checkpoint.peer_downloader import PeerDownloader
from swarm.checkpoint.safetensors_headers import weight_files
from swarm.checkpoint.weight_store import FetchProgress, Wanted, WeightStore
from swarm.errors import BadModel, EngineError

logger = logging.getLogger(__name__)

Runs = list[tuple[int, int]]  # of chunks: the first one, and how many

SAMPLES = 8  # chunks of a file that are looked at as soon as a copy is found


class FolderCheck(WeightStore):
    """A store that has everything, and lets nothing wrong pass; made by `open`."""

    def __init__(self, folder: Path, source: PeerDownloader) -> None:
        super().__init__(folder, source)
        self._peers = source
        self._loop = asyncio.get_running_loop()
        self._refused: asyncio.Future[BadModel] = self._loop.create_future()

    @classmethod
    async def open(cls, folder: Path, source: PeerDownloader) -> "FolderCheck":
        """Look at a sample of every weight file; raises BadModel if it is another's."""
        index = source.index
        if not index.entries:
            index = await source.read_chunk_index()
        check = cls(folder, source)
        for path in await asyncio.to_thread(weight_files, folder):
            entry = index.entry(path.name)
            if entry is None or entry.size != path.stat().st_size:
                raise _another(path)
            await source.read_list(entry)
            await asyncio.to_thread(check._compare, entry, _sample_of(index.chunks(entry)))
        return check

    async def refused(self) -> BadModel:
        """Wait until the copy turns out to be another model's; returns what to say of it."""
        return await asyncio.shield(self._refused)

    def missing(self, wanted: Wanted) -> dict[str, ByteRanges]:
        """Nothing is missing."""
        return {}

    def ensure(self, wanted: Wanted, progress: FetchProgress) -> int:
        """Check the chunks around the ranges; blocks; returns 0; raises BadModel, EngineError."""
        with self._one_at_a_time:
            try:
                todo = [
                    (entry := self._entry(name), self._runs(entry, each))
                    for name, each in wanted.items()
                ]
                progress.begin(sum(count for _, runs in todo for _, count in runs))
                for entry, runs in todo:
                    self._compare(entry, runs, progress)
            except BadModel as error:
                raise self._refuse(error) from error
        return 0

    def _entry(self, name: str) -> Entry:
        entry = self._peers.index.entry(name)
        if entry is None:
            raise _another(self.folder / name)
        return entry

    def _runs(self, entry: Entry, ranges: ByteRanges) -> Runs:
        chunk = self._peers.index.chunk
        whole = aligned(ranges, chunk, entry.size)
        return [(low // chunk, -(-(high - low) // chunk)) for low, high in whole]

    def _compare(self, entry: Entry, runs: Runs, progress: FetchProgress | None = None) -> None:
        path, wanted = self.folder / entry.name, self._peers.lists[entry.name]
        chunk = self._peers.index.chunk
        try:
            digests = ChunkDigests(path, chunk)
            try:
                for first, count in runs:
                    for at, digest in enumerate(digests.of(first, count), first):
                        if digests.size != entry.size or digest != wanted[slice_of(at, 1)]:
                            raise _another(path)
                        if progress:
                            progress.came(1)
            finally:
                digests.remember()
        except OSError as error:
            raise EngineError(
                f"{path} cannot be read: {error.strerror}.", "Check the disk and its permissions."
            ) from error

    def _refuse(self, error: BadModel) -> BadModel:
        def tell() -> None:
            if not self._refused.done():
                self._refused.set_result(error)

        self._loop.call_soon_threadsafe(tell)
        return error


def _sample_of(chunks: int) -> Runs:
    """The first, the last and some chunks between, each as a run of one."""
    step = max(1, (chunks - 1) // (SAMPLES - 1))
    return [(at, 1) for at in sorted({*range(0, chunks, step), chunks - 1}) if at >= 0]


def _another(path: Path) -> BadModel:
    return BadModel(
        f"{path} is not the file of that name that the swarm serves.",
        "Put the very same files there, or move this copy away.",
    )
