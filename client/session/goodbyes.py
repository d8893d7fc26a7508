"""Goodbyes: what tells stages that a session is over, while the session goes on elsewhere."""

from collections.abc import Iterable
from contextlib import suppress

from swarm.errors import SwarmError
from swarm.p2p.channel import Channel
from swarm.task_set import TaskSet
from swarm.wire.messages import Message


class Goodbyes:
    """Those of one session; a peer that takes none, since it ends itself, holds nobody up."""

    def __init__(self, channel: Channel, seconds: float) -> None:
        self._channel, self._seconds = channel, seconds
        self._tasks = TaskSet()

    def say(self, peers: Iterable[str], goodbye: Message) -> None:
        """Send it to each of them, for a while."""
        for peer in peers:
            self._tasks.create("a goodbye", self._say(peer, goodbye))

    async def close(self) -> None:
        """Wait until they are sent, or have taken too long."""
        try:
            await self._tasks.wait(self._seconds)
        finally:
            await self._tasks.close()

    async def _say(self, peer: str, goodbye: Message) -> None:
        with suppress(SwarmError):
            await self._channel.send(peer, goodbye, timeout_seconds=self._seconds)
