"""Outbox: what a server says to its peers, in tasks where it must: a stuck peer stops no other."""

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from swarm.channel import Channel, OnLost
from swarm.errors import PeerError
from swarm.wire import Message, Step

logger = logging.getLogger(__name__)

SEND_SECONDS = 5.0
REFUSALS_CAP = 4096  # messages under way above which strangers get no answer


class Outbox:
    """Sends in order for each peer; tells `on_lost` of a peer that takes nothing in."""

    def __init__(self, channel: Channel, on_lost: OnLost) -> None:
        self._channel = channel
        self._on_lost = on_lost
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: Counter[str] = Counter()  # by peer: nothing may overtake them

    def send(self, peer: str, message: Message) -> None:
        """Send a message, or lose the peer."""
        if peer in self._under_way or not self._channel.send_now(peer, message):
            self._spawn(peer, self._try(peer, message))

    def refuse(self, peer: str, message: Message) -> None:
        """Send a refusal, unless a flood of bad messages has already left too many under way."""
        if len(self._tasks) < REFUSALS_CAP:
            self.send(peer, message)

    def pass_on(self, leader: str, client: str, step: Step) -> None:
        """Send a step to the next stage; if that is out of reach, to the client that relays it."""
        if leader in self._under_way or not self._channel.send_now(leader, step):
            self._spawn(leader, self._deliver(leader, client, step))

    async def close(self, timeout_seconds: float) -> None:
        """Wait for what is being sent."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_seconds)

    async def _deliver(self, leader: str, client: str, step: Step) -> None:
        try:
            await self._channel.send(leader, step, timeout_seconds=SEND_SECONDS)
        except PeerError as error:
            logger.info("%s is out of reach (%s): its client relays", leader, error)
            await self._try(client, step)

    async def _try(self, peer: str, message: Message) -> None:
        try:
            await self._channel.send(peer, message, timeout_seconds=SEND_SECONDS)
        except PeerError as error:
            self._on_lost(peer, str(error))

    def _spawn(self, peer: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        self._under_way[peer] += 1
        task.add_done_callback(lambda done: self._reap(peer, done))

    def _reap(self, peer: str, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._under_way[peer] -= 1
        if not self._under_way[peer]:
            del self._under_way[peer]
        if not task.cancelled() and (error := task.exception()):
            logger.error("a message was not sent", exc_info=error)
