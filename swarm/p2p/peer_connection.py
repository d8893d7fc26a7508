"""PeerConnection: the outgoing stream to one peer, the order of its senders, its round trip."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from swarm.p2p.frame_stream import FrameStream
from swarm.wire.codec import Codec
from swarm.wire.messages import Ping, Pong

BURST = 5  # pings at the start
SMOOTHING = 0.2  # weight of a new round trip
PINGS = Codec({"PING": Ping, "PONG": Pong})
Disconnect = Callable[[str], "asyncio.Task[None]"]


@dataclass
class PeerConnection:
    """The connection to one peer: its stream once open, and the order in which senders go."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    stream: FrameStream | None = None
    nonce: int = 0
    ping: tuple[int, float] | None = None  # nonce and moment of a ping on an idle stream
    samples: int = 0
    round_trip_seconds: float | None = None
    has_heard: bool = False  # anything on this stream
    quiet_beats: int = 0  # without a frame of ours other than a ping
    moves: bool = True  # whether the peer takes a stream that follows another one
    asked: dict[int, "asyncio.Future[None]"] = field(default_factory=dict)  # pongs, by nonce

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the connection from being forgotten, and its frames in line."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1

    @property
    def is_idle(self) -> bool:
        """Whether there is no stream and nobody who wants one."""
        return self.stream is None and not self.users

    def beat(self) -> FrameStream | None:
        """Ping, measured on an idle stream; returns the stream if it was silent for too long."""
        if self.stream is None:
            return None
        if self.stream.tick():
            return self.stream
        self.quiet_beats = 0 if self.stream.has_sent else self.quiet_beats + 1
        self.send_ping(measured=not self.stream.has_sent)
        self.stream.has_sent = False
        return None

    def write_now(self, buffers: Iterable[bytes | memoryview]) -> bool:
        """Queue a frame if the stream is open and free, and nobody is in line for it."""
        if self.stream is None or self.users or not self.stream.write_now(buffers):
            return False
        self.stream.has_sent = True
        return True

    def send_ping(self, *, measured: bool) -> None:
        """Ping if the stream is free; only a measured ping counts as a round trip."""
        self.nonce += 1
        sent = self.stream and self.stream.write_now(PINGS.encode(Ping(self.nonce)))
        if sent and measured and self.ping is None:
            self.ping = self.nonce, time.monotonic()

    def hear(self, header: memoryview, body: memoryview) -> None:
        """Take the round trip of a pong: the least of a burst at the start, then smoothed.

        Raises RemoteProtocolError for what is neither a ping nor a pong.
        """
        pong = PINGS.decode(header, body)
        if not isinstance(pong, Pong):
            return
        self.has_heard = True
        if (asked := self.asked.pop(pong.nonce, None)) and not asked.done():
            asked.set_result(None)
        if self.ping is not None and pong.nonce == self.ping[0]:
            seconds, self.ping = time.monotonic() - self.ping[1], None
            self._take_round_trip(seconds)
        if self.samples < BURST and self.ping is None:
            self.send_ping(measured=True)

    async def ask_pong(self, stream: FrameStream) -> "asyncio.Future[None]":
        """Ping behind all that was sent; what is returned is done with the pong, or the stream."""
        self.nonce += 1
        asked = self.asked[self.nonce] = asyncio.get_running_loop().create_future()
        asked.add_done_callback(partial(self._forget_asked, self.nonce))
        await stream.write(PINGS.encode(Ping(self.nonce)))
        return asked

    def _forget_asked(self, nonce: int, _asked: "asyncio.Future[None]") -> None:
        self.asked.pop(nonce, None)

    def drop_stream(self) -> None:
        """The stream ended: nobody gets a pong over it any more."""
        self.stream = None
        for asked in list(self.asked.values()):
            asked.cancel()

    def open(self, stream: FrameStream) -> None:
        """Start afresh on a new stream."""
        self.stream, self.ping, self.has_heard = stream, None, False
        self.quiet_beats = 0
        self.samples, self.round_trip_seconds = 0, None
        self.send_ping(measured=False)  # its pong includes the opening

    def _take_round_trip(self, seconds: float) -> None:
        before = self.round_trip_seconds
        if before is None or self.samples < BURST:
            self.round_trip_seconds = min(seconds, seconds if before is None else before)
        else:
            self.round_trip_seconds = before + SMOOTHING * (seconds - before)
        self.samples += 1


class PendingDisconnects:
    """Our own disconnects of peers that p2pd has yet to carry out, at most one a peer.

    A daemon that stands still carries one out when it wakes, and then ends whatever connection to
    the peer there is by that time. So who opens a stream to a peer waits for our own one first.
    """

    def __init__(self, disconnect: Disconnect) -> None:
        self._disconnect = disconnect
        self._pending: dict[str, asyncio.Task[None]] = {}

    def begin(self, peer: str) -> None:
        """Drop the connection to a peer, unless that is under way."""
        if peer not in self._pending:
            task = self._pending[peer] = self._disconnect(peer)
            task.add_done_callback(lambda _: self._pending.pop(peer))

    async def finish(self, peer: str) -> None:
        """Wait until no disconnect of a peer is pending; `P2PDaemon.disconnect` bounds it."""
        if task := self._pending.get(peer):
            await asyncio.wait([task])
