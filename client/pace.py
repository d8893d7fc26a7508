"""Pace: how long a session waits for its peers before it looks for others; pure."""

from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]
MOST_DOUBLINGS = 6


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a session waits for what."""

    step_seconds: float = 5.0  # the least deadline of one answer
    averages: float = 5.0  # or so many times the usual time of a token
    pause_seconds: float = 0.3  # between two looks at the board
    leave_seconds: float = 1.0  # to tell stages that it is over
    faults: int = 5  # answers in a row, without progress, that time cannot mend


class Pace:
    """The deadlines of one session: they follow its own speed and double with each replay."""

    def __init__(self, patience: Patience, timeout_seconds: float, clock: Clock) -> None:
        self.replays = 0
        self._patience = patience
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._average = 0.0
        self._moved_at = clock()
        self._token_at: float | None = None
        self._due = 0.0

    def expect(self, chunks: int = 1) -> None:
        """Wait for an answer from now on; a prompt of several chunks may take as much longer."""
        least = max(self._patience.step_seconds, self._patience.averages * self._average)
        self._due = self._clock() + least * chunks * 2 ** min(self.replays, MOST_DOUBLINGS)
        self._token_at = None

    def token(self) -> None:
        """A token came: remember how long it took, and wait for the next."""
        now, before = self._clock(), self._token_at
        if before is not None:
            took = now - before
            self._average = 0.8 * self._average + 0.2 * took if self._average else took
        self._moved_at = now
        self.expect()
        self._token_at = now

    def wait_seconds(self) -> float:
        """How much longer to wait for the answer that is due; 0 or less: too late."""
        return min(self._due - self._clock(), self.left_seconds())

    def left_seconds(self) -> float:
        """How much longer the session may go on without any progress."""
        return self._moved_at + self._timeout_seconds - self._clock()
