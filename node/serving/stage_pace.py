"""StagePace: whether the steps of a stage take far longer than they did when it was loaded."""

import math
from dataclasses import dataclass, field

from swarm.wire.sampling_params import MOST_SPECULATED

SLOWER = 3.0  # times what was measured at the load
LEAST_SECONDS = 0.05  # beyond it: what small models take is mostly overhead
WINDOW_SECONDS = 5.0  # of two such in a row even the quickest step is as slow
FORGET_SECONDS = 300.0  # without a step, after which slowness is no news any more
NEWS = 2.0  # times more or less, from which on another figure is told


@dataclass(slots=True)
class Window:
    """The quickest step of a while."""

    began: float
    quickest: float = math.inf


@dataclass(slots=True)
class StagePace:
    """What steps of one session take by now, as far as that is worth telling.

    A step is counted for each of the sessions that may have shared it, and only the quickest of a
    while counts: neither company nor a long prompt in the same step makes a device look slow.
    """

    loaded_seconds: float
    _windows: list[Window] = field(default_factory=list)  # two at the most
    _told: float | None = None  # while it is slow

    def note(self, tokens: int, seconds: float, sessions: int, now: float) -> None:
        """A step was computed; prompts are passed over, and guesses are steps like others."""
        if tokens > MOST_SPECULATED + 1:
            return
        if self._windows and now - self._windows[-1].began > FORGET_SECONDS:
            self._windows.clear()
        if not self._windows or now - self._windows[-1].began >= WINDOW_SECONDS:
            self._windows = [*self._windows[-1:], Window(now)]
        last = self._windows[-1]
        last.quickest = min(last.quickest, seconds / max(sessions, 1))
        self._judge()

    def step_seconds(self, now: float) -> float:
        """What to tell others: what the load has measured, unless steps take far longer."""
        if self._windows and now - self._windows[-1].began > FORGET_SECONDS:
            self._told = None
        return self._told or self.loaded_seconds

    def _judge(self) -> None:
        quickest = min(window.quickest for window in self._windows)
        if quickest <= SLOWER * self.loaded_seconds + LEAST_SECONDS:
            self._told = None
        elif len(self._windows) > 1 and not self._is_known(quickest):
            self._told = quickest

    def _is_known(self, seconds: float) -> bool:
        """Whether about as much is told already: adverts do not follow every step."""
        return self._told is not None and self._told / NEWS < seconds < self._told * NEWS
