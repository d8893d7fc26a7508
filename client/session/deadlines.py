"""Deadlines: how long a session waits for its peers before it looks for others; pure."""

from collections.abc import Callable
from dataclasses import dataclass

TIMEOUT_SECONDS = 60.0  # of a request without progress, unless somebody says otherwise
Clock = Callable[[], float]
MOST_DOUBLINGS = 6
OPEN_ROUND_TRIPS = 3  # of a far peer: a connection, and the answer


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a session waits for what."""

    step_seconds: float = 5.0  # the least deadline of one answer
    open_seconds: float = 1.0  # of a peer that does not answer an OPEN, if there is another
    chunk_seconds: float = 1.0  # what the whole deadline grows by with each chunk of a prompt
    averages: float = 5.0  # or so many times the usual time of a token
    moved_seconds: float = 0.5  # the least deadline of one answer where a stage is leaving
    pause_seconds: float = 0.3  # between two looks at the board, at first
    longest_pause_seconds: float = 2.0  # and later
    leave_seconds: float = 1.0  # to tell stages that it is over
    faults: int = 5  # answers in a row, without progress, that time cannot mend


class Deadlines:
    """The deadlines of one session: they follow its own speed and double with each replay."""

    def __init__(
        self, timeouts: Timeouts, timeout_seconds: float, clock: Clock, chunks: int = 1
    ) -> None:
        self.replays = 0
        self._timeouts = timeouts
        self._timeout_seconds = timeout_seconds + timeouts.chunk_seconds * (chunks - 1)
        self._clock = clock
        self._average = 0.0
        self._moved_at = clock()
        self._token_at: float | None = None
        self._due = 0.0

    def expect(self, chunks: int = 1) -> None:
        """Wait for an answer from now on; a prompt of several chunks may take as much longer."""
        least = max(self._timeouts.step_seconds, self._timeouts.averages * self._average)
        self._due = self._clock() + least * chunks * 2 ** min(self.replays, MOST_DOUBLINGS)
        self._token_at = None

    @property
    def knows_pace(self) -> bool:
        """Whether tokens have come from this route, so that the next one is due soon."""
        return self._token_at is not None

    def hurry(self) -> None:
        """Wait for the next answer no longer than usual: a stage has said that it leaves."""
        usual = max(self._timeouts.moved_seconds, self._timeouts.averages * self._average)
        self._due = min(self._due, self._clock() + usual)

    def token(self) -> float | None:
        """A token came: remember and return how long it took, and wait for the next.

        None for the first one of a route: its time is that of the prompt.
        """
        now, before = self._clock(), self._token_at
        took = None if before is None else now - before
        if took is not None:
            self._average = 0.8 * self._average + 0.2 * took if self._average else took
        self._moved_at = now
        self.expect()
        self._token_at = now
        return took

    def open_seconds(self, round_trip_seconds: float) -> float:
        """How long to wait for an OPENED, over such a way, while there is another peer to ask."""
        least = max(self._timeouts.open_seconds, OPEN_ROUND_TRIPS * round_trip_seconds)
        return least * 2.0 ** min(self.replays, MOST_DOUBLINGS)

    def wait_seconds(self) -> float:
        """How much longer to wait for the answer that is due; 0 or less: too late."""
        return min(self._due - self._clock(), self.left_seconds())

    def left_seconds(self) -> float:
        """How much longer the session may go on without any progress."""
        return self._moved_at + self._timeout_seconds - self._clock()
