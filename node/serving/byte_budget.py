"""ByteBudget: how many bytes each peer may send per second, and at once; a check never waits."""

import time
from collections import OrderedDict
from collections.abc import Callable

PEERS_REMEMBERED = 1024


class ByteBudget:
    """A bucket of bytes for every peer that fills again; the least recent peers are forgotten."""

    def __init__(
        self, per_second: int, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second, self._burst = per_second, burst
        self._clock = clock
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()  # bytes, as of when

    def allows(self, peer: str, count: int) -> bool:
        """Whether the peer may send so many bytes now; counts them if so."""
        now = self._clock()
        spent, since = self._spent.pop(peer, (0.0, now))
        spent = max(0.0, spent - (now - since) * self._per_second)
        is_allowed = spent + count <= self._burst
        self._spent[peer] = spent + count * is_allowed, now
        if len(self._spent) > PEERS_REMEMBERED:
            self._spent.popitem(last=False)
        return is_allowed
