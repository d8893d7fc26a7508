"""OwnerControl: carries out what the owner of a node wants: it pauses and resumes, soon."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from node.owner.pause_rules import PauseRule
from node.owner.pauses import Pauses
from node.status_lines import StatusLines
from swarm.task_set import TaskSet, supervise

LONGEST_WAIT = 3600.0  # between two looks at what lasts for ever

logger = logging.getLogger(__name__)


class Pausable(Protocol):
    """A node, as far as its owner takes its devices."""

    async def pause(self) -> None:
        """Give their memory back."""

    def resume(self) -> None:
        """Offer them again."""


class OwnerControl:
    """One for a node; `drop_standby` ends the worker that it keeps in reserve."""

    def __init__(
        self,
        pauses: Pauses,
        node: Pausable,
        drop_standby: Callable[[], Awaitable[None]],
        status: StatusLines,
        rules: Sequence[PauseRule] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pauses = pauses
        self._node = node
        self._drop_standby = drop_standby
        self._status = status
        self._rules = rules
        self._clock = clock
        self._lock = asyncio.Lock()
        self._is_begun = False  # before, the node has no devices yet
        self._is_paused = False
        self.why = ""  # the node is paused now; empty if it is not

    async def run(self) -> None:
        """Follow the owner's wishes and rules, once the node has its devices; never ends."""
        self._is_begun = True
        async with TaskSet() as tasks:
            for rule in self._rules:
                watch = partial(rule.watch, partial(self.pauses.note, rule.name))
                tasks.create(rule.name, supervise(f"watching {rule.name}", watch))
            while True:
                self.pauses.news.clear()
                await self.apply()
                seconds = min(self.pauses.seconds_left(self._clock()), LONGEST_WAIT)
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self.pauses.news.wait()

    async def pause(self, seconds: float = math.inf) -> None:
        """Pause for so long; returns when the memory of the devices is free."""
        self.pauses.pause(self._clock(), seconds)
        await self.apply()

    async def resume(self) -> None:
        """End every pause."""
        self.pauses.resume()
        await self.apply()

    async def apply(self) -> None:
        """Pause or resume the node, as is wanted now; who comes meanwhile waits for that."""
        async with self._lock:
            why = self.pauses.why(self._clock())
            self.why = why
            if bool(why) == self._is_paused or not self._is_begun:
                return
            self._is_paused = bool(why)
            if why:
                await asyncio.gather(self._node.pause(), self._drop_standby())
                self._status.paused(why)
            else:
                self._node.resume()
                self._status.resumed()
