"""Outbox: what a server says to its peers, in tasks where it must: a stuck peer stops no other.

What cannot be sent at all is a slip of ours, and costs only the session that it is about.
"""

import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from swarm.errors import PeerError
from swarm.p2p.channel import Channel, OnLost
from swarm.task_set import TaskSet
from swarm.wire.messages import Message, Step

logger = logging.getLogger(__name__)

SEND_SECONDS = 5.0
REFUSALS_CAP = 4096  # messages under way above which strangers get no answer
OnUnsent = Callable[[Message], None]


class Outbox:
    """Sends in order for each peer; tells `on_lost` of a peer that takes nothing in.

    `on_unsent` hears of a message that could not be sent for any other reason.
    """

    def __init__(self, channel: Channel, on_lost: OnLost, on_unsent: OnUnsent) -> None:
        self._channel = channel
        self._on_lost = on_lost
        self._on_unsent = on_unsent
        self._tasks = TaskSet()
        self._under_way: Counter[str] = Counter()  # by peer: nothing may overtake them

    def send(self, peer: str, message: Message) -> None:
        """Send a message, or lose the peer."""
        if not self._is_sent(peer, message):
            self._spawn(peer, self._try(peer, message))

    def refuse(self, peer: str, message: Message) -> None:
        """Send a refusal, unless a flood of bad messages has already left too many under way."""
        if len(self._tasks) < REFUSALS_CAP:
            self.send(peer, message)

    def pass_on(self, leader: str, client: str, step: Step) -> None:
        """Send a step to the next stage; if that is out of reach, to the client that relays it."""
        if not self._is_sent(leader, step):
            self._spawn(leader, self._deliver(leader, client, step))

    async def close(self, timeout_seconds: float) -> None:
        """Wait for what is being sent, but not for longer."""
        await self._tasks.wait(timeout_seconds)
        await self._tasks.close()

    def _is_sent(self, peer: str, message: Message) -> bool:
        """Whether nothing is left to do: it is on its way, or never can be."""
        try:
            return peer not in self._under_way and self._channel.send_now(peer, message)
        except Exception as error:  # noqa: BLE001 - an island: it must not end whom we answer
            self._give_up(message, error)
            return True

    def _give_up(self, message: Message, error: Exception) -> None:
        logger.error("a %s cannot be sent", type(message).__name__, exc_info=error)
        self._on_unsent(message)

    async def _deliver(self, leader: str, client: str, step: Step) -> None:
        try:
            await self._channel.send(leader, step, timeout_seconds=SEND_SECONDS)
        except PeerError as error:
            logger.info("%s is out of reach (%s): its client relays", leader, error)
            await self._try(client, step)
        except Exception as error:  # noqa: BLE001 - an island, as above
            self._give_up(step, error)

    async def _try(self, peer: str, message: Message) -> None:
        try:
            await self._channel.send(peer, message, timeout_seconds=SEND_SECONDS)
        except PeerError as error:
            self._on_lost(peer, str(error))
        except Exception as error:  # noqa: BLE001 - an island, as above
            self._give_up(message, error)

    def _spawn(self, peer: str, work: Coroutine[Any, Any, None]) -> None:
        self._under_way[peer] += 1
        task = self._tasks.create("sending a message", work)
        task.add_done_callback(lambda _done: self._forget_one(peer))

    def _forget_one(self, peer: str) -> None:
        self._under_way[peer] -= 1
        if not self._under_way[peer]:
            del self._under_way[peer]
