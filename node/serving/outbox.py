"""Outbox: what a server says to its peers, in tasks where it must: a stuck peer stops no other.

What cannot be sent at all is a slip of ours, and costs only the session that it is about. Steps to
the next stage are confirmed soon; where they are not, their clients carry them (`hop_way.py`).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from node.serving.hop_way import HopWay
from swarm.errors import PeerError
from swarm.p2p.channel import Channel, OnLost
from swarm.task_set import TaskSet
from swarm.wire.messages import Message, Step

logger = logging.getLogger(__name__)

SEND_SECONDS = 5.0
CONFIRM_SECONDS = 0.5  # between two confirmations of one way
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
        self._ways: dict[str, HopWay] = {}  # by the leader of a next stage
        self._tending = TaskSet()
        self._tended: set[str] = set()
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
        way = self._ways.setdefault(leader, HopWay())
        way.used_at = _now()
        if way.takes(client, step):
            way.hold(client, step)
            if not self._is_sent(leader, step):
                self._spawn(leader, self._deliver(leader, step))
        else:
            self.send(client, step)
        if leader not in self._tended:
            self._tended.add(leader)
            self._tending.create("confirming steps", self._tend(leader, way))

    def lose(self, peer: str) -> None:
        """Learn that the streams to a peer ended: what it has not confirmed may be lost."""
        if peer in self._ways:
            self._relay_all(peer, "its stream ended", is_tried=False)

    async def close(self, timeout_seconds: float) -> None:
        """Wait for what is being sent, but not for longer."""
        await self._tending.close()
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

    async def _tend(self, leader: str, way: HopWay) -> None:
        """Confirm what went to a leader, and try its way again while it is cut."""
        try:
            while way.is_wanted(_now()):
                if way.is_cut:
                    await asyncio.sleep(way.retry_at - _now())
                await self._confirm(leader, way)
                await asyncio.sleep(0.0 if way.is_cut else CONFIRM_SECONDS)
        finally:
            self._tended.discard(leader)
            if not (way.is_cut or way.relayed):
                self._ways.pop(leader, None)

    async def _confirm(self, leader: str, way: HopWay) -> None:
        number, losses = way.number, way.losses
        patience = way.patience_seconds(self._channel.round_trip_seconds(leader))
        try:
            await self._channel.confirm(leader, timeout_seconds=patience)
        except PeerError as error:
            self._relay_all(leader, str(error), is_tried=True)
        else:
            if way.losses == losses:
                way.confirm(number)

    def _relay_all(self, leader: str, reason: str, *, is_tried: bool) -> None:
        """Give the clients of all unconfirmed steps these to carry, in order."""
        taken = self._ways.setdefault(leader, HopWay()).cut(_now(), is_tried=is_tried)
        if taken:
            logger.info("%s is out of reach (%s): clients relay", leader, reason)
        for client, step in taken:
            self.send(client, step)

    async def _deliver(self, leader: str, step: Step) -> None:
        try:
            await self._channel.send(leader, step, timeout_seconds=SEND_SECONDS)
        except PeerError as error:
            self._relay_all(leader, str(error), is_tried=True)
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


def _now() -> float:
    return asyncio.get_running_loop().time()
