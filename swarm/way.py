"""Way: what we know of the way to one peer: its stream, the order of senders, its round trip."""

import asyncio
import time
from dataclasses import dataclass, field

from swarm.streams import FrameStream
from swarm.wire import Codec, Ping, Pong

SMOOTHING = 0.2  # weight of a new round trip
PINGS = Codec({"PING": Ping, "PONG": Pong})


@dataclass
class Way:
    """The way to one peer: its stream once open, and the order in which senders go."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    stream: FrameStream | None = None
    nonce: int = 0
    ping: tuple[int, float] | None = None  # nonce and moment of a ping on an idle stream
    round_trip_seconds: float | None = None

    def send_ping(self, *, measured: bool) -> None:
        """Ping if the stream is free; only a measured ping counts as a round trip."""
        self.nonce += 1
        sent = self.stream and self.stream.write_now(PINGS.encode(Ping(self.nonce)))
        if sent and measured and self.ping is None:
            self.ping = self.nonce, time.monotonic()

    def hear_pong(self, nonce: int) -> None:
        """Take a round trip; the first pong only says that the stream is open: ping again."""
        if self.ping is not None and nonce == self.ping[0]:
            seconds, self.ping = time.monotonic() - self.ping[1], None
            before = seconds if self.round_trip_seconds is None else self.round_trip_seconds
            self.round_trip_seconds = before + SMOOTHING * (seconds - before)
        elif self.round_trip_seconds is None:
            self.send_ping(measured=True)
