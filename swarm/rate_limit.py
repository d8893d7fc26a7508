"""RateLimit: how often each peer may do a thing; a check never waits, so strangers never queue."""

import time
from collections import OrderedDict

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
