"""Partings: our own disconnects of peers that p2pd has yet to carry out, at most one a peer.

A daemon that stands still carries one out when it wakes, and then ends whatever connection to the
peer there is by that time. So who opens a stream to a peer waits for our parting with it first.
"""

import asyncio
from collections.abc import Callable

Disconnect = Callable[[str], "asyncio.Task[None]"]


class Partings:
    """The disconnects under way; each forgets itself when it is through."""

    def __init__(self, disconnect: Disconnect) -> None:
        self._disconnect = disconnect
        self._pending: dict[str, asyncio.Task[None]] = {}

    def begin(self, peer: str) -> None:
        """Drop the connection to a peer, unless that is under way."""
        if peer not in self._pending:
            parting = self._pending[peer] = self._disconnect(peer)
            parting.add_done_callback(lambda _: self._pending.pop(peer))

    async def finish(self, peer: str) -> None:
        """Wait until no parting with a peer is pending; `P2PDaemon.disconnect` bounds it."""
        if parting := self._pending.get(peer):
            await asyncio.wait([parting])
