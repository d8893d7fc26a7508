"""Stop rules: told the best cost so far, say whether to stop; the planner itself has no clock."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class StopRule(Protocol):
    """Called between steps of a search with the best cost found (lower is better)."""

    def __call__(self, best_cost: float) -> bool:
        """True to stop now and return the best plan found."""


def never(best_cost: float) -> bool:
    """Never stop early: search until nothing is left to try."""
    return False


@dataclass(frozen=True, slots=True)
class Deadline:
    """Stops when a clock given from outside reaches a second."""

    clock: Callable[[], float]
    at_seconds: float

    def __call__(self, best_cost: float) -> bool:
        """Whether the time is over."""
        return self.clock() >= self.at_seconds
