"""Inbox: what the peers of a session have said and it has not yet looked at, within bounds."""

import asyncio

from swarm.errors import PeerError, PeerMisbehaved
from swarm.formatting import short_id
from swarm.wire.messages import Message

MOST_MESSAGES = 4096
MOST_BODY_BYTES = 256 << 20


class Inbox:
    """A queue of (peer, message or loss); who fills it up is refused, and all of it forgotten."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[tuple[str, Message | PeerError]] = asyncio.Queue()
        self._body_bytes = 0

    def put(self, peer: str, message: Message | PeerError) -> None:
        """Append what a peer said, or what became of it."""
        self._body_bytes += _body_bytes_of(message)
        if self._waiting.qsize() >= MOST_MESSAGES or self._body_bytes > MOST_BODY_BYTES:
            self.clear()
            message = PeerMisbehaved(
                f"Peer {short_id(peer)} sends more than this session can take.", peer=peer
            )
        self._waiting.put_nowait((peer, message))

    async def get(self) -> tuple[str, Message | PeerError]:
        """Wait for the next one."""
        peer, message = await self._waiting.get()
        self._body_bytes -= _body_bytes_of(message)
        return peer, message

    def clear(self) -> None:
        """Forget everything."""
        self._waiting, self._body_bytes = asyncio.Queue(), 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return self._waiting.empty()


def _body_bytes_of(message: Message | PeerError) -> int:
    return len(message.body) if isinstance(message, Message) else 0
