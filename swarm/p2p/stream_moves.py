"""StreamMoves: lets frames to peers leave a relay once there is a direct connection.

Another stream follows the one through the relay. It says how many frames come before its own, and
the receiver handles those first: none is lost, and none overtakes another.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from swarm.errors import PeerError, PeerRefused
from swarm.p2p.frame_stream import STREAM_ERRORS, FrameStream
from swarm.p2p.peer_connection import PeerConnection
from swarm.task_set import TaskSet

MOVE_SECONDS = 5.0  # for a stream that follows another one to open
FOLLOW_SECONDS = 10.0  # and for the frames before its own to arrive

Open = Callable[[str], Awaitable[FrameStream]]  # a stream that follows another; raises PeerError
Begin = Callable[[str, PeerConnection, FrameStream], None]  # use it from now on

logger = logging.getLogger(__name__)


class StreamMoves:
    """The moves of one channel's streams, at most one a peer."""

    def __init__(self, open_follower: Open, begin: Begin, tasks: TaskSet) -> None:
        self._open, self._begin, self._tasks = open_follower, begin, tasks
        self._moving: set[str] = set()  # peers

    def start(self, peer: str, connection: PeerConnection) -> None:
        """Let frames to a peer go on over a direct connection, if they go through a relay now."""
        stream = connection.stream
        is_movable = stream is not None and stream.is_relayed and connection.moves
        if stream is not None and is_movable and peer not in self._moving:
            self._moving.add(peer)
            task = self._tasks.create("leaving a relay", self._move(peer, connection, stream))
            task.add_done_callback(lambda _: self._moving.discard(peer))

    async def _move(self, peer: str, connection: PeerConnection, before: FrameStream) -> None:
        """Let another stream follow this one, once all of this one's frames have arrived."""
        with connection.in_use():
            try:
                async with asyncio.timeout(MOVE_SECONDS):
                    await asyncio.wait([await connection.ask_pong(before)])
                    await self._follow(peer, connection, before)
            except PeerRefused:  # it is of a version that has no such streams
                connection.moves = False
            except (PeerError, TimeoutError, *STREAM_ERRORS) as error:
                logger.debug("the stream to %s stays at its relay: %s", peer, error)
        if connection.stream is not before:
            await before.wait_for_end(FOLLOW_SECONDS)

    async def _follow(self, peer: str, connection: PeerConnection, before: FrameStream) -> None:
        stream = await self._open(peer)
        with ExitStack() as undo:
            undo.callback(stream.abort)
            async with connection.lock:
                if connection.stream is before and before.is_free and not stream.is_relayed:
                    stream.begin_behind(before)
                    self._begin(peer, connection, stream)
                    undo.pop_all()
                    logger.info("frames to %s go over a direct connection from now on", peer)
