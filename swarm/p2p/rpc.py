"""Rpc: small requests and answers between peers, one short stream each, rate limited."""

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass

import msgpack

from swarm.errors import PeerLost, PeerRefused, RemoteProtocolError, SwarmError
from swarm.formatting import printable
from swarm.p2p.channel import ANSWER_CAP, RpcHandler
from swarm.p2p.frame_stream import STREAM_ERRORS, frame_of, read_small_frame
from swarm.p2p.hello import is_proven, problem_of_hello, read_hello
from swarm.p2p.p2p_daemon import P2PDaemon
from swarm.p2p.rate_limit import RateLimit
from swarm.p2p.unproved_streams import UnprovedStreams
from swarm.trust.door import Door

HEADER_CAP = 4096
READ_SECONDS = 5.0  # for a stranger to finish its question
ANSWER_SECONDS = 30.0  # for our handler
CALLS_PER_SECOND = 50  # of one peer
OPEN_CALLS = 16  # of one peer at a time
UNPROVED_CAP = 256  # questions of which the proof has not come yet
TEXT_CAP = 500
INTRODUCE = "introduce"  # the question of a client that says whose it is

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RpcStatus:
    """The header of an answer: an empty code means that the body is the answer."""

    code: str = ""
    text: str = ""
    retry_after_seconds: float = 0.0

    def encode(self) -> bytes:
        """As msgpack."""
        data: bytes = msgpack.packb([self.code, self.text[:TEXT_CAP], self.retry_after_seconds])
        return data

    @classmethod
    def decode(cls, data: bytes) -> "RpcStatus":
        """Raises RemoteProtocolError on anything else than a status."""
        values = _unpacked(data)
        if not isinstance(values, list) or list(map(type, values)) != [str, str, float]:
            raise RemoteProtocolError("An answer's header is not understood.")
        return cls(values[0], values[1][:TEXT_CAP], max(0.0, values[2]))


class Limits:
    """How much each peer may ask; a check never waits, so strangers never queue."""

    def __init__(self, per_second: int = CALLS_PER_SECOND) -> None:
        self._rate = RateLimit(per_second)
        self._open = Counter[str]()

    def has_room(self, peer: str) -> bool:
        """Whether the peer may ask now; counts the question if so."""
        if self._open[peer] >= OPEN_CALLS or not self._rate.allows(peer):
            return False
        self._open[peer] += 1
        return True

    def leave(self, peer: str) -> None:
        """A question that had room is answered."""
        self._open[peer] -= 1
        if not self._open[peer]:
            del self._open[peer]


class Rpc:
    """Asks other peers and answers them by name; `proof` shows that we know the swarm's key."""

    def __init__(self, daemon: P2PDaemon, protocol: str, limits: Limits | None = None) -> None:
        self._daemon = daemon
        self.protocol = protocol
        self._handlers: dict[str, RpcHandler] = {}
        self._limits = limits or Limits()
        self._unproved = UnprovedStreams(UNPROVED_CAP, OPEN_CALLS)

    def answer(self, name: str, handler: RpcHandler) -> None:
        """Answer the questions called `name`."""
        self._handlers[name] = handler

    async def ask(self, peer: str, name: str, payload: bytes, hello: bytes) -> bytes:
        """Ask over an own stream, without a deadline; raises PeerLost, PeerRefused."""
        reader, writer = await self._daemon.open_stream(peer, self.protocol)
        try:
            writer.write(hello)
            writer.writelines(frame_of(msgpack.packb(name), payload))
            await writer.drain()
            header, answer = await read_small_frame(reader, HEADER_CAP, ANSWER_CAP)
            status = RpcStatus.decode(header)
        except STREAM_ERRORS as error:
            raise PeerLost(f"Peer {peer} left without an answer.", peer=peer) from error
        finally:
            writer.close()
        if status.code:
            raise _refusal(peer, status)
        return answer

    async def ask_myself(self, peer: str, name: str, payload: bytes) -> bytes:
        """Answer a question of our own; raises PeerRefused."""
        status, answer = await self._answered(peer, name, payload)
        if status.code:
            raise _refusal(peer, status)
        return answer

    async def serve(
        self,
        peer: str,
        stream: Stream,
        expected_proof: bytes,
        door: Door,
    ) -> None:
        """Read one question of a peer and answer it, or say why not."""
        reader, writer = stream
        try:
            status, answer = await self._status_and_answer(peer, stream, expected_proof, door)
            writer.writelines(frame_of(status.encode(), answer))
            async with asyncio.timeout(READ_SECONDS):
                await writer.drain()
                await _linger(reader)
        except (TimeoutError, RemoteProtocolError, *STREAM_ERRORS) as error:
            logger.debug("no answer for %s: %r", peer, error)
        finally:
            writer.close()

    async def _status_and_answer(
        self, peer: str, stream: Stream, expected_proof: bytes, door: Door
    ) -> tuple[RpcStatus, bytes]:
        reader, writer = stream
        if problem := door.problem_at_first(peer):
            return RpcStatus("refused", problem), b""
        if not self._limits.has_room(peer):
            return RpcStatus("busy", "Too many questions at once.", 1.0), b""
        try:
            async with asyncio.timeout(READ_SECONDS):
                with self._unproved.place(peer, writer.transport.abort):
                    said = await read_hello(reader, door)
                problem = problem_of_hello(said, expected_proof, door, peer)
                if problem and is_proven(said, expected_proof) and door.takes_introductions:
                    return await _heard_introduction(peer, reader, door), b""
                if problem:
                    return RpcStatus("stranger", problem), b""
                header, payload = await read_small_frame(reader, HEADER_CAP, ANSWER_CAP)
            return await self._answered(peer, _unpacked(header), payload)
        finally:
            self._limits.leave(peer)

    async def _answered(self, peer: str, name: object, payload: bytes) -> tuple[RpcStatus, bytes]:
        handler = self._handlers.get(name) if isinstance(name, str) else None
        if handler is None:
            return RpcStatus("unknown", f"Nobody here answers {str(name)[:40]!r}."), b""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await handler(peer, payload)
        except SwarmError as error:
            return RpcStatus(type(error).__name__, str(error), _retry_of(error)), b""
        except TimeoutError:
            return RpcStatus("slow", "The answer took too long."), b""
        if len(answer) > ANSWER_CAP:
            logger.error("the answer to %s has %d bytes, above the cap", name, len(answer))
            return RpcStatus("too_large", "The answer is too large to send."), b""
        return RpcStatus(), answer


async def _heard_introduction(peer: str, reader: asyncio.StreamReader, door: Door) -> RpcStatus:
    """Let a peer that is not on the list of those allowed say whose it is, and nothing else."""
    header, payload = await read_small_frame(reader, HEADER_CAP, HEADER_CAP)
    shown = payload if _unpacked(header) == INTRODUCE else b""
    problem = door.problem_of(peer, shown)
    return RpcStatus("refused", problem) if problem else RpcStatus()


async def _linger(reader: asyncio.StreamReader) -> None:
    """Read on until the asker closes: a stream with unread bytes would take the answer with it."""
    left = 2 * ANSWER_CAP
    while left > 0 and (data := await reader.read(min(left, 2**16))):
        left -= len(data)


def _refusal(peer: str, status: RpcStatus) -> PeerRefused:
    return PeerRefused(
        f"{printable(status.code)}: {printable(status.text, TEXT_CAP)}",
        peer=peer,
        retry_after_seconds=status.retry_after_seconds,
    )


def _retry_of(error: SwarmError) -> float:
    return error.retry_after_seconds if isinstance(error, PeerRefused) else 0.0


def _unpacked(data: bytes) -> object:
    try:
        return msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise RemoteProtocolError("A header is not msgpack.") from error
