"""Limits for each peer; a check never waits, so strangers never queue."""

import time
from collections import OrderedDict
from collections.abc import Callable

from asyncio_throttle.throttler import Throttler

PEERS_REMEMBERED = 1024


class RateLimit:
    """A sliding window of one second for every peer, the least recent of them forgotten."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._throttlers: OrderedDict[str, Throttler] = OrderedDict()

    def allows(self, peer: str) -> bool:
        """Whether the peer may do it now; counts it if so."""
        throttler = self._throttlers.pop(peer, None) or Throttler(self._per_second)
        self._throttlers[peer] = throttler
        if len(self._throttlers) > PEERS_REMEMBERED:
            self._throttlers.popitem(last=False)
        throttler.flush()  # type: ignore[no-untyped-call]
        if len(throttler._task_logs) >= self._per_second:
            return False
        throttler._task_logs.append(time.monotonic())
        return True


class Budget:
    """An amount for every peer that fills up again by so much a second, to so much at most."""

    def __init__(
        self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # amount, and when

    def takes(self, peer: str, amount: float = 1) -> bool:
        """Whether so much is left to the peer; spends it if so."""
        now = self._clock()
        left, since = self._left.pop(peer, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_second)
        is_enough = left >= amount
        self._left[peer] = (left - amount if is_enough else left), now
        if len(self._left) > PEERS_REMEMBERED:
            self._left.popitem(last=False)
        return is_enough
