"""Clock: time as callers pass it in; a ManualClock moves only when a test says so."""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Wall-clock seconds, and calls in the future."""

    def now(self) -> float:
        """Seconds."""

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call once when the time has come, in order of time."""


class LoopClock:
    """The event loop's own time."""

    def now(self) -> float:
        """Wall-clock seconds."""
        return time.time()

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """Through the running loop."""
        asyncio.get_running_loop().call_later(seconds, call)


class ManualClock:
    """A clock that only a test moves."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self._now = now
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        """The seconds to which the test has moved it."""
        return self._now

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """Kept until `advance` passes the moment."""
        heapq.heappush(self._calls, (self._now + seconds, next(self._order), call))

    async def advance(self, seconds: float) -> None:
        """Move on and let everything that falls due happen, in order."""
        end = self._now + seconds
        await settle()
        while self._calls and self._calls[0][0] <= end:
            self._now, _, call = heapq.heappop(self._calls)
            call()
            await settle()
        self._now = end


async def settle(rounds: int = 20) -> None:
    """Let the event loop finish what is ready, without time passing."""
    for _ in range(rounds):
        await asyncio.sleep(0)
