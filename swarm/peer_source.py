"""PeerSource: files of a model from peers that hold them, chunk by chunk, each checked alone."""

import asyncio
import hashlib
import logging
from collections import Counter, deque
from collections.abc import Coroutine, Iterable

import msgpack

from swarm.board import Board
from swarm.channel import Channel
from swarm.errors import (
    BadModel,
    EngineError,
    PeerError,
    PeerRefused,
    RemoteProtocolError,
    SwarmError,
)
from swarm.inventory import DIGEST_BYTES, MOST_CHUNK, Entry, Inventory, digest_of
from swarm.ranges import Range, Ranges, aligned, merged, split, without
from swarm.records import Capability
from swarm.sparse import FileFacts
from swarm.store import Take

logger = logging.getLogger(__name__)

QUESTION = "weights"  # the name under which peers answer
PEERS = 16  # asked at most
STREAMS = 2  # questions to one peer at a time
ANSWER_SECONDS = 20.0  # of up to 512 KiB
RESTS = 100  # that a busy peer may ask for in a row
REST_SECONDS = 2.0  # the longest of them
ROUNDS = 4  # in which nothing comes, before giving up
PAUSE_SECONDS = 1.0  # between rounds
LIST_PAGE = (1 << 19) // DIGEST_BYTES  # chunk digests in one answer


class PeerSource:
    """The files of the model with this inventory; one event loop, any number of threads."""

    name = "other peers"

    def __init__(self, channel: Channel, board: Board, digest: str) -> None:
        self._channel, self._board = channel, board
        self.digest = digest
        self.inventory = Inventory(MOST_CHUNK, ())
        self.lists: dict[str, bytes] = {}
        self._liars: set[str] = set()
        self._loop = asyncio.get_running_loop()

    async def read_inventory(self) -> Inventory:
        """Ask for the inventory; raises BadModel if nobody has it."""
        data = await self._first(["inventory", self.digest], self.digest)
        self.inventory = Inventory.of_bytes(data)
        return self.inventory

    async def read_list(self, entry: Entry) -> bytes:
        """The chunk digests of a file; raises BadModel if nobody has them."""
        if entry.name not in self.lists:
            count = self.inventory.chunks(entry)
            pages = [
                await self._first(["digests", self.digest, entry.name, start, end - start])
                for start, end in split(((0, count),), LIST_PAGE)
            ]
            found = b"".join(pages)
            if digest_of(found) != entry.digest or len(found) != count * DIGEST_BYTES:
                raise BadModel("The peers do not agree on the model's digests.", "Try again.")
            self.lists[entry.name] = found
        return self.lists[entry.name]

    def fetch(self, file: str, facts: FileFacts, ranges: Ranges, take: Take) -> None:
        """Hand over chunks around the ranges; blocks, not in the event loop; raises SwarmError."""
        fetching = self._fetch(file, facts, ranges, take)
        asyncio.run_coroutine_threadsafe(fetching, self._loop).result()

    # ------------------------------------------------------------------ chunks of one file

    async def _fetch(self, file: str, facts: FileFacts, ranges: Ranges, take: Take) -> None:
        entry = self.inventory.entry(file)
        if entry is None or entry.size != facts.size:
            raise BadModel(f"The swarm's model has no such file {file}.", "Join again.")
        await self.read_list(entry)
        todo = deque(self._runs(aligned(ranges, self.inventory.chunk, entry.size)))
        idle = 0
        while todo:
            left = len(todo)
            holders = await self._holders(entry)
            work = [
                self._draw(peer, entry, (held, todo), take)
                for peer, held in holders.items()
                for _ in range(STREAMS)
            ]
            await _together(work)
            idle = idle + 1 if len(todo) == left else 0
            if idle >= ROUNDS:
                raise EngineError(
                    f"No peer that answers holds all of {file} that this shard needs.",
                    "Let the host of the swarm run, or copy the model to this machine.",
                )
            if todo:
                await asyncio.sleep(PAUSE_SECONDS)

    def _runs(self, ranges: Ranges) -> Iterable[Range]:
        return split(ranges, MOST_CHUNK // self.inventory.chunk * self.inventory.chunk)

    async def _holders(self, entry: Entry) -> dict[str, Ranges]:
        async def held(peer: str) -> Ranges:
            try:
                answer = await self._ask(peer, ["have", self.digest, entry.name])
                return merged((int(low), int(high)) for low, high in msgpack.unpackb(answer))
            except (PeerError, RemoteProtocolError, ValueError, TypeError) as error:
                logger.info("%s does not say what it holds: %s", peer, error)
                return ()

        peers = await self._peers()
        found = await asyncio.gather(*map(held, peers))
        return {peer: ranges for peer, ranges in zip(peers, found, strict=True) if ranges}

    async def _draw(
        self, peer: str, entry: Entry, work: tuple[Ranges, deque[Range]], take: Take
    ) -> None:
        """Take runs that a peer holds off the list until none is left, or the peer fails."""
        held, todo = work
        while peer not in self._liars:
            run = next((each for each in todo if not without((each,), held)), None)
            if run is None:
                return
            todo.remove(run)
            try:
                data = await self._chunks(peer, entry, run)
            except (PeerError, RemoteProtocolError) as error:
                logger.warning("%s does not give weights: %s", peer, error)
                todo.append(run)
                return
            try:
                await asyncio.to_thread(take, run[0], data)
            except SwarmError:
                todo.clear()  # nobody wants the rest, or there is no room for it
                raise

    async def _chunks(self, peer: str, entry: Entry, run: Range) -> bytes:
        chunk = self.inventory.chunk
        first, count = run[0] // chunk, -(-(run[1] - run[0]) // chunk)
        data = await self._ask(peer, ["chunks", self.digest, entry.name, first, count])
        wanted = self.lists[entry.name][first * DIGEST_BYTES : (first + count) * DIGEST_BYTES]
        if len(data) != run[1] - run[0] or await asyncio.to_thread(_digests, data, chunk) != wanted:
            self._liars.add(peer)
            raise RemoteProtocolError(f"Weights of {entry.name} from {peer} are not the model's.")
        return data

    # ------------------------------------------------------------------ peers

    async def _peers(self) -> list[str]:
        known = await self._board.read(Capability)
        unfit = self._liars | {self._channel.peer}
        return [p for p, each in known.items() if not each.leaving and p not in unfit][:PEERS]

    async def _first(self, question: list[object], digest: str = "") -> bytes:
        """The first answer to a question, of that digest if one is given; raises BadModel."""
        for peer in await self._peers():
            try:
                answer = await self._ask(peer, question)
            except (PeerError, RemoteProtocolError) as error:
                logger.info("%s does not answer about weights: %s", peer, error)
                continue
            if not digest or digest_of(answer) == digest:
                return answer
            self._liars.add(peer)
        raise BadModel(
            "No peer hands out the files of the swarm's model.",
            "Let the host of the swarm run, or copy the model to this machine.",
        )

    async def _ask(self, peer: str, question: list[object]) -> bytes:
        payload, rests = msgpack.packb(question), Counter[str]()
        while True:
            try:
                return await self._channel.ask(
                    peer, QUESTION, payload, timeout_seconds=ANSWER_SECONDS
                )
            except PeerRefused as error:
                rests[peer] += 1
                if not error.retry_after_seconds or rests[peer] > RESTS:
                    raise
                await asyncio.sleep(min(error.retry_after_seconds, REST_SECONDS))


async def _together(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Run coroutines side by side; the first error ends the others and is raised."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _digests(data: bytes, chunk: int) -> bytes:
    view = memoryview(data)
    return b"".join(
        hashlib.sha256(view[low : low + chunk]).digest() for low in range(0, len(data), chunk)
    )
