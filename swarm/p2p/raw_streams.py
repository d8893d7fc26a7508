"""RawStreams: streams of plain bytes between peers, for what is neither a frame nor a question."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from swarm.errors import RemoteProtocolError
from swarm.p2p.channel import RawHandler, RawStream
from swarm.p2p.frame_stream import STREAM_ERRORS
from swarm.p2p.hello import problem_of_hello, read_hello
from swarm.p2p.p2p_daemon import P2PDaemon
from swarm.p2p.rpc import READ_SECONDS
from swarm.p2p.unproved_streams import UnprovedStreams
from swarm.trust.door import Door

SERVED_SECONDS = 60.0  # whatever the handler does
OPEN_CAP, OPEN_OF_A_PEER = 16, 2

logger = logging.getLogger(__name__)


class RawStreams:
    """Opens streams to peers, and hands theirs to one handler once their proof is there."""

    def __init__(self, daemon: P2PDaemon, protocol: str) -> None:
        self._daemon = daemon
        self.protocol = protocol
        self._handler: RawHandler | None = None
        self._open = Counter[str]()
        self._unproved = UnprovedStreams(OPEN_CAP, OPEN_OF_A_PEER)

    def answer(self, handler: RawHandler) -> None:
        """Hand every stream that a peer opens to `handler`; it ends with it."""
        self._handler = handler

    async def open(self, peer: str, hello: bytes) -> RawStream:
        """Open a stream, without a deadline; raises PeerLost, PeerRefused."""
        reader, writer = await self._daemon.open_stream(peer, self.protocol)
        writer.write(hello)
        return reader, writer

    async def serve(self, peer: str, stream: RawStream, expected_proof: bytes, door: Door) -> None:
        """Let the handler have a stream of a peer that may have one; the others' are ended."""
        _, writer = stream
        try:
            if not door.problem_at_first(peer) and self._has_room(peer):
                with self._place(peer):
                    await self._serve(peer, stream, expected_proof, door)
        except (TimeoutError, RemoteProtocolError, *STREAM_ERRORS) as error:
            logger.debug("a stream of %s ended: %r", peer, error)
        finally:
            writer.close()

    def _has_room(self, peer: str) -> bool:
        return self._open.total() < OPEN_CAP and self._open[peer] < OPEN_OF_A_PEER

    @contextmanager
    def _place(self, peer: str) -> Iterator[None]:
        self._open[peer] += 1
        try:
            yield
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]

    async def _serve(self, peer: str, stream: RawStream, expected_proof: bytes, door: Door) -> None:
        reader, writer = stream
        with self._unproved.place(peer, writer.transport.abort):
            async with asyncio.timeout(READ_SECONDS):
                said = await read_hello(reader, door)
        if problem := problem_of_hello(said, expected_proof, door, peer):
            raise RemoteProtocolError(problem)
        if self._handler is not None:
            async with asyncio.timeout(SERVED_SECONDS):
                await self._handler(peer, reader, writer)
