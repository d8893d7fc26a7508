"""NetworkClock: the wall-clock time that peers agree on; no jump of one machine's clock moves it.

It runs with the machine's monotonic time. When the wall clock says something else, it is followed
if it differs by less than a second (as NTP steers it), or if most peers' wall clocks say the same,
or if there is nobody to ask.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median

STEERED_SECONDS = 1.0  # a difference that is no jump


class NetworkClock:
    """Seconds since the epoch; `settle` decides what to do about a wall clock that jumped."""

    def __init__(
        self, wall: Callable[[], float] = time.time, ticks: Callable[[], float] | None = None
    ) -> None:
        self.wall = wall
        self._ticks = ticks or _ticks
        self._start = wall() - self._ticks()

    def now(self) -> float:
        """The time for records, leases and whatever else peers compare."""
        return self._ticks() + self._start

    @property
    def jump_seconds(self) -> float:
        """By how much the wall clock is ahead of us."""
        return self.wall() - self.now()

    @property
    def has_jumped(self) -> bool:
        """Whether the wall clock differs by more than it is ever steered."""
        return abs(self.jump_seconds) > STEERED_SECONDS

    def settle(self, ahead: Sequence[float] = ()) -> float:
        """Follow the wall clock or not; returns by how much we were put forward.

        `ahead` says of each peer that was asked by how much its wall clock is ahead of us. A
        minority of liars cannot move us, and nobody to a time that is not our own wall clock's.
        """
        jump = self.jump_seconds
        if self.has_jumped and ahead and abs(median(ahead) - jump) >= abs(median(ahead)):
            return 0.0
        self._start += jump
        return jump


def _ticks() -> float:
    """Monotonic seconds that count while the machine sleeps, where the system has them."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


CLOCK = NetworkClock()  # of this process: hivemind's storage has one clock for all, too
