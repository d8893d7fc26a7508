"""Chunk digests of files on this disk, remembered by size and time of change: read once only."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import constants

logger = logging.getLogger(__name__)

DIGEST_BYTES = 32
UNKNOWN = bytes(DIGEST_BYTES)  # in place of a digest that was never taken
FOLDER = "digests"  # below the cache
HEAD_BYTES = 256  # before the digests: which state of which file they belong to


class ChunkDigests:
    """The digests of one file's chunks of `chunk` bytes, as far as somebody asked for them."""

    def __init__(self, path: Path, chunk: int) -> None:
        """Take up what is remembered of the file as it is now; raises OSError."""
        self.path, self._chunk = path, chunk
        self._state = path.stat()
        self.count = -(-self._state.st_size // chunk)
        self._digests = bytearray(self._remembered() or UNKNOWN * self.count)
        self._is_changed = False

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._state.st_size

    def of(self, first: int, count: int) -> Iterator[bytes]:
        """The digests of chunks in a row; reads those that are not known; raises OSError."""
        with self.path.open("rb") as file:
            for at in range(first, min(first + count, self.count)):
                place = slice(at * DIGEST_BYTES, (at + 1) * DIGEST_BYTES)
                if self._digests[place] == UNKNOWN:
                    self._digests[place] = hashlib.sha256(self._read(file, at)).digest()
                    self._is_changed = True
                yield bytes(self._digests[place])

    def _read(self, file: BinaryIO, at: int) -> bytes:
        file.seek(at * self._chunk)
        return file.read(self._chunk)

    def remember(self) -> None:
        """Keep what was found for the next start, unless the file changed meanwhile."""
        if not self._is_changed:
            return
        target = self._note
        fresh = target.with_suffix(f".{os.getpid()}.new")
        try:
            if _head_of(self.path.stat(), self._chunk) != self._head:
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(self._head + self._digests)
            fresh.replace(target)
            self._is_changed = False
        except OSError as error:
            with suppress(OSError):
                fresh.unlink()
            logger.info("digests of %s are not remembered: %s", self.path, error)

    @property
    def _head(self) -> bytes:
        return _head_of(self._state, self._chunk)

    @property
    def _note(self) -> Path:
        name = hashlib.sha256(str(self.path.resolve()).encode(errors="surrogateescape")).hexdigest()
        return Path(constants.HF_HOME) / "swarm" / FOLDER / f"{name}-{self._chunk}"

    def _remembered(self) -> bytes | None:
        try:
            data = self._note.read_bytes()
        except OSError:
            return None
        whole = HEAD_BYTES + DIGEST_BYTES * self.count
        return data[HEAD_BYTES:] if data.startswith(self._head) and len(data) == whole else None


def _head_of(state: os.stat_result, chunk: int) -> bytes:
    """What changes when a file does: also when it is replaced by one of its size and time."""
    facts = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, chunk]
    return json.dumps(facts).encode().ljust(HEAD_BYTES)
