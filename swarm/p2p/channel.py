"""Channel: the seam that carries frames and questions between peers, by peer id."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from swarm.wire.messages import Message

ANSWER_CAP = 1024 * 1024  # bytes of a question's payload, and of its answer
OnMessage = Callable[[str, Message], None]
OnLost = Callable[[str, str], None]
OnRate = Callable[[str, float], None]  # of a peer, in bytes per second
RpcHandler = Callable[[str, bytes], Awaitable[bytes]]
RawStream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
RawHandler = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Channel(Protocol):
    """What a package needs of the network; `LibP2PChannel` is real, `MemoryChannel` its twin."""

    peer: str

    def listen(self, on_message: OnMessage, on_lost: OnLost) -> None:
        """Deliver messages (peer, message) and losses (peer, reason) on the event loop, in order.

        A RemoteProtocolError of `on_message` is answered with FAIL; other errors are bugs.
        """

    async def send(self, peer: str, message: Message, *, timeout_seconds: float = 10.0) -> None:
        """Hand a message over for ordered delivery; its body must not change afterwards.

        Waits while the connection to the peer is full; raises PeerLost, PeerRefused, Deadline.
        """

    def send_now(self, peer: str, message: Message) -> bool:
        """Hand a message over if the connection is free now; False means that `send` has to."""

    async def confirm(self, peer: str, *, timeout_seconds: float) -> None:
        """Return once the peer has got all that was sent to it before, opening the way if need be.

        Raises PeerLost, PeerRefused, Deadline. A way that was just opened and over which nothing
        came back is dropped, so that the next call dials afresh.
        """

    def answer(self, name: str, handler: RpcHandler) -> None:
        """Answer the questions called `name`; a SwarmError of the handler reaches the asker."""

    async def ask(
        self, peer: str, name: str, payload: bytes, *, timeout_seconds: float = 5.0
    ) -> bytes:
        """Ask a peer and return its answer; raises PeerLost, PeerRefused, Deadline."""

    def round_trip_seconds(self, peer: str) -> float | None:
        """The smoothed round trip to a peer with an open stream, or None."""

    async def close(self) -> None:
        """End all streams without reporting them as lost."""


class StreamChannel(Channel, Protocol):
    """A channel that has streams of plain bytes, too, for what is neither frame nor question."""

    def listen_for_rates(self, on_rate: OnRate, on_share: OnRate) -> None:
        """Tell how fast large frames of peers come in, and large answers, which share the way."""

    def answer_streams(self, handler: RawHandler) -> None:
        """Hand streams of plain bytes that peers open to `handler`; each ends with it."""

    def leave_relay(self, peer: str) -> None:
        """Let what is sent to a peer go over the direct connection that there is by now."""

    def is_quiet(self, peer: str) -> bool:
        """Whether no session can be under way over the streams to and from a peer."""

    async def open_stream(self, peer: str, *, timeout_seconds: float = 5.0) -> RawStream:
        """Open such a stream, to be closed by us; raises PeerLost, PeerRefused, Deadline.

        PeerRefused, too, where the peer is of a version that has none.
        """
