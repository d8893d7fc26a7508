"""ChunkIndex: the files of a model with digests of their chunks, so that any peer may serve them.

The founder's manifest names the digest of the index, as its `inventory`; the index names, for
every file, the digest of its list of chunk digests. So each chunk can be checked alone.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgpack

from swarm.checkpoint.chunk_digests import DIGEST_BYTES, ChunkDigests
from swarm.checkpoint.safetensors_headers import is_metadata_file, weight_files
from swarm.errors import RemoteProtocolError
from swarm.p2p.channel import ANSWER_CAP

LEAST_CHUNK, MOST_CHUNK = 1 << 14, 1 << 19  # bytes
CHUNKS = 1 << 12  # of a model's largest file, about, while chunks can grow
FILES_CAP = 4096
METADATA_FILES_CAP = 64
LIST_CAP = 1 << 25  # bytes of chunk digests of one file
METADATA_BYTES_CAP = 1 << 27  # bytes of all files together that are no weights


@dataclass(frozen=True, slots=True)
class Entry:
    """One file."""

    name: str
    size: int
    digest: str  # of its chunks' digests in a row, in hex

    def __post_init__(self) -> None:
        plain = self.name == Path(self.name).name and not self.name.startswith(".")
        if not plain or not (self.is_weights or is_metadata_file(self.name)):
            raise ValueError(f"{self.name!r:.80} is no file of a model")
        if self.size < 0 or len(self.digest) != 2 * DIGEST_BYTES:
            raise ValueError(f"{self.name} has no size or no digest")
        if not self.is_weights and self.size > METADATA_BYTES_CAP:
            raise ValueError(f"{self.name} is too large")

    @property
    def is_weights(self) -> bool:
        """Whether it holds tensors, of which a peer needs only some."""
        return self.name.endswith(".safetensors")


@dataclass(frozen=True, slots=True)
class ChunkIndex:
    """All files of one model."""

    chunk: int  # bytes of a chunk; the last one of a file may be short
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        if not LEAST_CHUNK <= self.chunk <= MOST_CHUNK or len(self.entries) > FILES_CAP:
            raise ValueError("the chunks or the files of an inventory are out of range")
        if any(self.chunks(entry) * DIGEST_BYTES > LIST_CAP for entry in self.entries):
            raise ValueError("a file has too many chunks")
        metadata_files = [entry.size for entry in self.entries if not entry.is_weights]
        if len(metadata_files) > METADATA_FILES_CAP or sum(metadata_files) > METADATA_BYTES_CAP:
            raise ValueError("there are too many small files, or they are not small")
        if len({entry.name for entry in self.entries}) < len(self.entries):
            raise ValueError("a file is named twice")

    def chunks(self, entry: Entry) -> int:
        """How many chunks a file has."""
        return -(-entry.size // self.chunk)

    def entry(self, name: str) -> Entry | None:
        """The file of that name."""
        return next((entry for entry in self.entries if entry.name == name), None)

    @property
    def digest(self) -> str:
        """What the manifest says of it."""
        return digest_of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """As msgpack."""
        entries = [[each.name, each.size, each.digest] for each in self.entries]
        data: bytes = msgpack.packb([self.chunk, entries])
        return data

    @classmethod
    def of_bytes(cls, data: bytes) -> "ChunkIndex":
        """Read what `to_bytes` wrote; raises RemoteProtocolError."""
        try:
            chunk, entries = msgpack.unpackb(data)
            found = tuple(Entry(str(name), int(size), str(tag)) for name, size, tag in entries)
            return cls(int(chunk), found)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise RemoteProtocolError(f"An inventory is not understood: {error}.") from error


@dataclass(frozen=True, slots=True)
class HashedFiles:
    """A chunk index with the chunk digests of every file, by name."""

    index: ChunkIndex
    lists: dict[str, bytes]


def hash_files(folder: Path) -> HashedFiles | None:
    """Read and digest every file of a whole model; None if it cannot be handed out.

    Blocks for as long as it takes to read what was not read before; raises BadModel, OSError.
    """
    weights = weight_files(folder)
    largest = max(path.stat().st_size for path in weights)
    chunk = LEAST_CHUNK
    while chunk < MOST_CHUNK and chunk * CHUNKS < largest:
        chunk *= 2
    metadata_files = sorted(p for p in folder.iterdir() if p.is_file() and is_metadata_file(p.name))
    paths = [*metadata_files, *weights]
    lists = {path.name: _list_of(path, chunk) for path in paths}
    try:
        entries = tuple(
            Entry(path.name, path.stat().st_size, digest_of(lists[path.name])) for path in paths
        )
        index = ChunkIndex(chunk, entries)
    except ValueError:
        return None
    return HashedFiles(index, lists) if len(index.to_bytes()) <= ANSWER_CAP else None


def digests_of(data: bytes, chunk: int) -> bytes:
    """The digests of the chunks in `data`, in a row."""
    view = memoryview(data)
    return b"".join(
        hashlib.sha256(view[low : low + chunk]).digest() for low in range(0, len(data), chunk)
    )


def slice_of(first: int, count: int) -> slice:
    """Where the digests of chunks in a row stand in their file's list."""
    return slice(first * DIGEST_BYTES, (first + count) * DIGEST_BYTES)


def digest_of(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def _list_of(path: Path, chunk: int) -> bytes:
    digests = ChunkDigests(path, chunk)
    found = b"".join(digests.of(0, digests.count))
    digests.remember()
    return found
