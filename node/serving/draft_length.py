"""DraftLength: how many guesses are worth their rows, as measured at a session's last stage."""

from collections.abc import Sequence
from dataclasses import dataclass, field

ROW_COST = 0.3  # what each further row adds to a step of one row: float32 on a CPU is the dearest
LEAST_GAIN = 1.05  # below this, guesses are not worth their trouble
FRESHNESS = 0.1  # weight of the newest value in a moving average


@dataclass(slots=True)
class DraftLength:
    """What the ring of one session takes, and how often a guess of ours comes true."""

    acceptance: float = 0.5  # of a guess whose predecessors all came true
    compute_seconds: float = 0.0  # of all stages, for one step
    away_seconds: float = 0.0  # everything else in one turn of the ring
    _emitted: float | None = None
    _guesses: Sequence[int] = field(default=())

    def note_return(self, now_seconds: float, spent_seconds: float) -> None:
        """The rows of the next step are here; the other stages worked on them for so long."""
        if self._emitted is not None:
            away = max(0.0, now_seconds - self._emitted - spent_seconds)
            self.away_seconds = _moved(self.away_seconds, away)
            self._emitted = None

    def note_compute(self, seconds: float, rows: int, ids: Sequence[int]) -> None:
        """A step of `rows` took so long at all stages and gave these ids: were they guessed?"""
        of_one_row = seconds / (1 + ROW_COST * (rows - 1))
        self.compute_seconds = _moved(self.compute_seconds, of_one_row)
        for guess, drawn in zip(self._guesses, ids, strict=False):
            self.acceptance += FRESHNESS * ((guess == drawn) - self.acceptance)
            if guess != drawn:
                return

    def choose(self, guesses: Sequence[int], now_seconds: float) -> list[int]:
        """Return those guesses that are worth computing; remembers all, to learn from them."""
        self._emitted = now_seconds
        self._guesses = list(guesses)
        count = best_draft_length(
            self.acceptance, self.away_seconds, self.compute_seconds, len(guesses)
        )
        return self._guesses[:count]


def best_draft_length(
    acceptance: float, away_seconds: float, compute_seconds: float, most: int
) -> int:
    """The number of guesses in [0, most] that yields most ids a second.

    A turn of the ring takes `away` + `compute` x (1 + ROW_COST x guesses) and yields one id, and
    one more for each guess that comes true with all before it.
    """
    best, best_gain = 0, LEAST_GAIN
    ids = 1.0
    for count in range(1, most + 1):
        ids += acceptance**count
        slower = ROW_COST * count * compute_seconds
        whole = away_seconds + compute_seconds
        gain = ids * whole / (whole + slower) if whole else 1.0
        if gain > best_gain:
            best, best_gain = count, gain
    return best


def _moved(average: float, value: float) -> float:
    return average + FRESHNESS * (value - average) if average else value
