"""PeerDownloader: files of a model from peers that hold them, each chunk checked by itself."""

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path

import msgpack
from huggingface_hub import constants

from swarm.checkpoint.byte_ranges import ByteRange, ByteRanges, aligned, merged, split, without
from swarm.checkpoint.chunk_digests import DIGEST_BYTES
from swarm.checkpoint.chunk_index import (
    MOST_CHUNK,
    ChunkIndex,
    Entry,
    digest_of,
    digests_of,
    slice_of,
)
from swarm.checkpoint.hub_model import CACHE
from swarm.checkpoint.sparse_file import FileFacts, SparseFile
from swarm.checkpoint.weight_store import FetchProgress, Take, WeightStore
from swarm.dht.board import Board
from swarm.errors import (
    BadModel,
    EngineError,
    PeerError,
    PeerRefused,
    RemoteProtocolError,
    SwarmError,
)
from swarm.formatting import printable
from swarm.p2p.channel import Channel
from swarm.records import PENDING, Capability, Manifest
from swarm.task_set import TaskSet

logger = logging.getLogger(__name__)

QUESTION = "weights"  # the name under which peers answer
PEERS = 16  # asked at a time
STREAMS = 2  # questions to one peer at a time
ANSWER_SECONDS = 20.0  # of up to 512 KiB
HAVE_SECONDS = 5.0  # of a short answer
BUSY_SECONDS = 20.0  # that a peer may put us off in a row before others are asked
LEAST_REST_SECONDS, REST_SECONDS = 0.1, 2.0  # of the rests that a busy peer may ask for
NEXT_SECONDS = 1.0  # without an answer, before the next peer is asked the same
ROUNDS = 4  # in which nothing comes and nobody new is asked, before giving up
ROUNDS_CAP = 64  # in which nothing comes, whoever is asked
PAUSE_SECONDS = 1.0  # between rounds
LIST_PAGE = (1 << 19) // DIGEST_BYTES  # chunk digests in one answer
LOOK_SECONDS = 0.5  # between looks at the board
KNOWN_SECONDS = 3.0  # for a manifest to be found on it
PENDING_SECONDS = 600.0  # for the founder to digest its files

Find = Callable[[float], Awaitable[Manifest | None]]  # the founder's word, within some seconds


class PeerDownloader:
    """The files of the model with this chunk index; one event loop, any number of threads."""

    name = "other peers"

    def __init__(self, channel: Channel, board: Board, digest: str, founder: str = "") -> None:
        self._channel, self._board, self._founder = channel, board, founder
        self.digest = digest
        self.index = ChunkIndex(MOST_CHUNK, ())
        self.lists: dict[str, bytes] = {}
        self._liars: set[str] = set()
        self._misses = Counter[str]()  # of peers: in a row without giving anything
        self._loop = asyncio.get_running_loop()

    async def read_chunk_index(self) -> ChunkIndex:
        """Ask for the chunk index; raises BadModel if nobody has it."""
        data = await self._first(["inventory", self.digest], self.digest)
        self.index = ChunkIndex.of_bytes(data)
        return self.index

    async def read_list(self, entry: Entry) -> bytes:
        """The chunk digests of a file; raises BadModel if nobody has them."""
        if entry.name not in self.lists:
            count = self.index.chunks(entry)
            pages = [
                await self._first(["digests", self.digest, entry.name, start, end - start])
                for start, end in split(((0, count),), LIST_PAGE)
            ]
            found = b"".join(pages)
            if digest_of(found) != entry.digest or len(found) != count * DIGEST_BYTES:
                raise BadModel("The peers do not agree on the model's digests.", "Try again.")
            self.lists[entry.name] = found
        return self.lists[entry.name]

    def fetch(self, file: str, facts: FileFacts, ranges: ByteRanges, take: Take) -> None:
        """Hand over chunks around the ranges; blocks, not in the event loop; raises SwarmError."""
        fetching = self._fetch(file, facts, ranges, take)
        asyncio.run_coroutine_threadsafe(fetching, self._loop).result()

    # ------------------------------------------------------------------ chunks of one file

    async def _fetch(self, file: str, facts: FileFacts, ranges: ByteRanges, take: Take) -> None:
        entry = self.index.entry(file)
        if entry is None or entry.size != facts.size:
            raise BadModel(f"The swarm's model has no such file {file}.", "Join again.")
        await self.read_list(entry)
        todo = deque(self._runs(aligned(ranges, self.index.chunk, entry.size)))
        idle = rounds = 0
        while todo:
            left, known = len(todo), set(self._misses)
            holders = await self._holders(entry, widely=rounds > 0)
            work = [
                self._draw(peer, entry, (held, todo), take)
                for peer, held in holders.items()
                for _ in range(STREAMS)
            ]
            await _together(work)
            if len(todo) < left:
                idle = rounds = 0
                continue
            idle, rounds = 0 if set(self._misses) - known else idle + 1, rounds + 1
            if idle >= ROUNDS or rounds >= ROUNDS_CAP:
                raise EngineError(
                    f"No peer that answers holds all of {file} that this shard needs.",
                    "Let the host of the swarm run, or copy the model to this machine.",
                )
            await asyncio.sleep(PAUSE_SECONDS)

    def _runs(self, ranges: ByteRanges) -> Iterable[ByteRange]:
        return split(ranges, MOST_CHUNK // self.index.chunk * self.index.chunk)

    async def _holders(self, entry: Entry, *, widely: bool) -> dict[str, ByteRanges]:
        """What of a file each peer holds; who did not answer before is asked if `widely`."""

        async def held(peer: str) -> ByteRanges:
            try:
                answer = await self._ask(peer, ["have", self.digest, entry.name], HAVE_SECONDS)
                return merged((int(low), int(high)) for low, high in msgpack.unpackb(answer))
            except (PeerError, RemoteProtocolError, ValueError, TypeError) as error:
                logger.info("%s does not say what it holds: %s", peer, error)
                self._misses[peer] += 1
                return ()

        peers = await self._peers()
        sound = [peer for peer in peers if self._misses[peer] < 1]
        peers = (peers if widely or not sound else sound)[:PEERS]
        found = await asyncio.gather(*map(held, peers))
        return {peer: ranges for peer, ranges in zip(peers, found, strict=True) if ranges}

    async def _draw(
        self, peer: str, entry: Entry, work: tuple[ByteRanges, deque[ByteRange]], take: Take
    ) -> None:
        """Take runs that a peer holds off the list until none is left, or the peer fails."""
        held, todo = work
        rested = 0.0
        while peer not in self._liars:
            run = next((each for each in todo if not without((each,), held)), None)
            if run is None:
                return
            todo.remove(run)
            try:
                data = await self._chunks(peer, entry, run)
            except (PeerError, RemoteProtocolError) as error:
                todo.append(run)  # for others, also while this one rests
                rest = _rest_of(error)
                rested += rest
                if not rest or rested > BUSY_SECONDS:
                    logger.warning("%s does not give weights: %s", peer, printable(str(error)))
                    self._misses[peer] += 1
                    return
                await asyncio.sleep(rest)
                continue
            rested = 0.0
            self._misses[peer] = -1
            try:
                await asyncio.to_thread(take, run[0], data)
            except SwarmError:
                todo.clear()  # nobody wants the rest, or there is no room for it
                raise

    async def _chunks(self, peer: str, entry: Entry, run: ByteRange) -> bytes:
        chunk = self.index.chunk
        first, count = run[0] // chunk, -(-(run[1] - run[0]) // chunk)
        question: list[object] = ["chunks", self.digest, entry.name, first, count]
        data = await self._ask_once(peer, question, ANSWER_SECONDS)
        wanted = self.lists[entry.name][slice_of(first, count)]
        if (
            len(data) != run[1] - run[0]
            or await asyncio.to_thread(digests_of, data, chunk) != wanted
        ):
            self._liars.add(peer)
            raise RemoteProtocolError(f"Weights of {entry.name} from {peer} are not the model's.")
        return data

    # ------------------------------------------------------------------ peers

    async def _peers(self) -> list[str]:
        """Whom to ask: the founder, then who gave something lately, who is new, who did not."""
        known = await self._board.read(Capability)
        unfit = self._liars | {self._channel.peer}
        fit = [peer for peer, each in known.items() if not each.leaving and peer not in unfit]
        random.shuffle(fit)  # not those first whose names come first
        return sorted(fit, key=lambda peer: (self._misses[peer], peer != self._founder))

    async def _first(self, question: list[object], digest: str = "") -> bytes:
        """The first answer to a question, of that digest if one is given; raises BadModel."""
        peers = iter((await self._peers())[: PEERS * ROUNDS_CAP])
        asked: set[asyncio.Task[bytes | None]] = set()
        async with TaskSet() as tasks:
            while (peer := next(peers, None)) or asked:
                if peer:
                    asking = self._answer_of(peer, question, digest)
                    asked.add(tasks.create("asking a peer", asking, is_awaited=True))
                done, asked = await asyncio.wait(
                    asked,
                    timeout=NEXT_SECONDS if peer and len(asked) < PEERS else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    if (answer := task.result()) is not None:
                        return answer
        raise BadModel(
            "No peer hands out the files of the swarm's model.",
            "Let the host of the swarm run, or copy the model to this machine.",
        )

    async def _answer_of(self, peer: str, question: list[object], digest: str) -> bytes | None:
        try:
            answer = await self._ask(peer, question, ANSWER_SECONDS)
        except (PeerError, RemoteProtocolError) as error:
            logger.info("%s does not answer about weights: %s", peer, error)
            self._misses[peer] += 1
            return None
        if digest and digest_of(answer) != digest:
            self._liars.add(peer)
            return None
        return answer

    async def _ask(self, peer: str, question: list[object], seconds: float) -> bytes:
        """An answer of a peer that may be busy for a while."""
        rested = 0.0
        while True:
            try:
                return await self._ask_once(peer, question, seconds)
            except PeerRefused as error:
                rest = _rest_of(error)
                rested += rest
                if not rest or rested > BUSY_SECONDS:
                    raise
                await asyncio.sleep(rest)

    async def _ask_once(self, peer: str, question: list[object], seconds: float) -> bytes:
        payload = msgpack.packb(question)
        return await self._channel.ask(peer, QUESTION, payload, timeout_seconds=seconds)


async def read_manifest(board: Board, seconds: float = 0.0) -> Manifest | None:
    """The founder's latest word, or None if there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = (await board.read(Manifest)).values()
        if found or time.monotonic() >= deadline:
            return max(found, key=lambda each: each.founded, default=None)
        await asyncio.sleep(LOOK_SECONDS)


async def wait_for_manifest(find: Find, cause: SwarmError) -> Manifest:
    """The founder's word once it says what peers may hand out; raises `cause`, BadModel."""
    deadline = time.monotonic() + PENDING_SECONDS
    while True:
        manifest = await find(KNOWN_SECONDS)
        if manifest is None or not manifest.inventory:
            raise cause
        if manifest.inventory != PENDING:
            return manifest
        if time.monotonic() > deadline:
            raise BadModel("The host is still reading its files.", "Try again later.") from cause
        await asyncio.sleep(LOOK_SECONDS)


async def open_from_peers(
    channel: Channel, board: Board, cause: SwarmError, find: Find | None = None
) -> tuple[Path, WeightStore]:
    """The folder of the swarm's model and what fills it; `cause` says why it is not here.

    Raises `cause` if the founder does not let peers hand the model out, BadModel if none does.
    """
    manifest = await wait_for_manifest(find or (lambda s: read_manifest(board, s)), cause)
    source = PeerDownloader(channel, board, manifest.inventory)
    index = await source.read_chunk_index()
    folder = Path(constants.HF_HOME) / CACHE / "peers" / manifest.inventory
    store = WeightStore(folder, source)
    await asyncio.to_thread(_populate, store, index)
    return folder, store


def _populate(store: WeightStore, index: ChunkIndex) -> None:
    for entry in index.entries:
        try:
            sparse = SparseFile(store.folder / entry.name, FileFacts(entry.size, entry.digest))
        except OSError as error:
            raise BadModel(f"{store.folder} cannot be used: {error}.", "Check HF_HOME.") from error
        if entry.is_weights:
            store.read_header(sparse)
        else:
            store.ensure({entry.name: ((0, entry.size),)}, FetchProgress())


def _rest_of(error: SwarmError) -> float:
    """How long a peer that is busy asks us to rest; 0 if that is not what it says."""
    asked = error.retry_after_seconds if isinstance(error, PeerRefused) else 0.0
    return min(max(asked, LEAST_REST_SECONDS), REST_SECONDS) if asked > 0 else 0.0


async def _together(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Run coroutines side by side; the first error ends the others and is raised."""
    async with TaskSet() as tasks:
        begun = [tasks.create("fetching", each, is_awaited=True) for each in work]
        await asyncio.gather(*begun)
