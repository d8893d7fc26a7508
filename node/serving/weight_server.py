"""WeightServer: hands the model's files to peers that lack them, a few chunks at a time."""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from swarm.checkpoint.chunk_index import (
    MOST_CHUNK,
    Entry,
    HashedFiles,
    digests_of,
    hash_files,
    slice_of,
)
from swarm.checkpoint.peer_downloader import (
    LIST_PAGE,
    QUESTION,
    Find,
    PeerDownloader,
    read_manifest,
)
from swarm.checkpoint.sparse_file import missing, present
from swarm.checkpoint.weight_store import WeightStore
from swarm.dht.board import Board
from swarm.errors import BadInput, PeerRefused, RemoteProtocolError, SwarmError
from swarm.p2p.channel import Channel
from swarm.records import PENDING

logger = logging.getLogger(__name__)

SERVED_AT_ONCE = 4  # chunks being read and sent; who asks meanwhile is told to come again
RETRY_SECONDS = 0.2
LOOK_SECONDS = 5.0
RANGES_CAP = 1 << 14  # told of one file


@dataclass(frozen=True, slots=True)
class WeightRequest:
    """A question, read strictly."""

    word: str
    entry: Entry | None
    start: int = 0
    count: int = 0


class WeightServer:
    """Answers what peers ask about the files in a folder, once it has hashed them."""

    def __init__(self, channel: Channel, folder: Path) -> None:
        self._channel, self._folder = channel, folder
        self._hashed: HashedFiles | None = None
        self.digest = PENDING  # of the inventory; "" if nothing will be handed out
        self._busy = 0
        channel.answer(QUESTION, self._answer)

    async def open_as_founder(self) -> None:
        """Digest the whole model, in a thread; `digest` is set for the manifest then."""
        try:
            hashed = await asyncio.to_thread(hash_files, self._folder)
        except (SwarmError, OSError) as error:
            logger.warning("peers cannot get the model from here: %s", error)
            hashed = None
        self.digest = ""
        if hashed:
            self._open(hashed)

    async def open_when_known(
        self, board: Board, store: WeightStore | None, find: Find | None = None
    ) -> None:
        """Hand out what the founder says that others hand out, as far as it is here."""
        while not self._hashed:
            try:
                manifest = await (find(0.0) if find else read_manifest(board))
                known = manifest.inventory if manifest else PENDING
                if not known:
                    return
                if known != PENDING:
                    await self._open_from(_source_of(store, self._channel, board, known))
            except SwarmError as error:
                logger.info("what may be handed out is not known yet: %s", error)
            await asyncio.sleep(LOOK_SECONDS)

    async def _open_from(self, source: PeerDownloader) -> None:
        index = source.index
        if not index.entries:
            index = await source.read_chunk_index()
        lists = {entry.name: await source.read_list(entry) for entry in index.entries}
        self._open(HashedFiles(index, lists))

    def _open(self, hashed: HashedFiles) -> None:
        self._hashed, self.digest = hashed, hashed.index.digest

    async def _answer(self, _peer: str, payload: bytes) -> bytes:
        hashed = self._hashed
        if hashed is None:
            raise BadInput("Nothing is handed out here.", "Ask another peer.")
        if self._busy >= SERVED_AT_ONCE:
            raise PeerRefused("Others are being served.", retry_after_seconds=RETRY_SECONDS)
        self._busy += 1
        try:
            return await asyncio.to_thread(
                self._answer_to, hashed, self._request_of(hashed, payload)
            )
        except OSError as error:
            raise BadInput(f"The file cannot be read: {error.strerror}.") from error
        finally:
            self._busy -= 1

    def _request_of(self, hashed: HashedFiles, payload: bytes) -> WeightRequest:
        try:
            values: Any = msgpack.unpackb(payload)
        except (ValueError, msgpack.UnpackException) as error:
            raise RemoteProtocolError("A question about weights is not msgpack.") from error
        match values:
            case ["inventory", self.digest]:
                return WeightRequest("inventory", None)
            case ["have", self.digest, str(name)]:
                return WeightRequest("have", _entry(hashed, name))
            case [("digests" | "chunks") as word, self.digest, str(name), int(start), int(count)]:
                entry = _entry(hashed, name)
                most = LIST_PAGE if word == "digests" else MOST_CHUNK // hashed.index.chunk
                if 0 <= start < start + count <= hashed.index.chunks(entry) and count <= most:
                    return WeightRequest(word, entry, start, count)
        raise BadInput("This is not handed out here.", "Ask another peer.")

    def _answer_to(self, hashed: HashedFiles, asked: WeightRequest) -> bytes:
        if asked.entry is None:
            return hashed.index.to_bytes()
        path, chunk = self._folder / asked.entry.name, hashed.index.chunk
        end = asked.start + asked.count
        match asked.word:
            case "digests":
                return hashed.lists[path.name][slice_of(asked.start, asked.count)]
            case "have":
                is_same = path.is_file() and path.stat().st_size == asked.entry.size
                held: bytes = msgpack.packb(present(path)[:RANGES_CAP] if is_same else ())
                return held
        low, high = asked.start * chunk, min(end * chunk, asked.entry.size)
        if missing(path, ((low, high),)):
            raise BadInput("These weights are not here.", "Ask another peer.")
        with path.open("rb") as file:
            file.seek(low)
            data = file.read(high - low)
        if digests_of(data, chunk) != hashed.lists[path.name][slice_of(asked.start, asked.count)]:
            raise BadInput("These weights are not here.", "Ask another peer.")  # another file's
        return data


def _source_of(
    store: WeightStore | None, channel: Channel, board: Board, digest: str
) -> PeerDownloader:
    """The source that has the lists already, if the model came from peers."""
    if store and isinstance(store.source, PeerDownloader) and store.source.digest == digest:
        return store.source
    return PeerDownloader(channel, board, digest)


def _entry(hashed: HashedFiles, name: str) -> Entry:
    entry = hashed.index.entry(name)
    if entry is None:
        raise BadInput("There is no such file.", "Ask for the inventory.")
    return entry
