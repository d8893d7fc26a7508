"""Company: how many sessions belong in one step, and whether to wait for them; pure.

A step of many tokens costs little more than a step of one, but the tokens of a turn come in one by
one: a stage that runs at once computes the first alone, and never again has them together. A stage
that runs all of them at once leaves the other stages idle meanwhile.
"""

import math
from collections.abc import Iterable

MEMORY_STEPS = 4  # a session that missed its turn so often is not waited for
PATIENCE = 0.5  # of a decode step's time
FRESHNESS = 0.2  # weight of the newest step


class Company:
    """The sessions that decode here, and how many of them belong in one step.

    A session spends as large a part of its turn here as this stage has of the layers: so many of
    the sessions are expected together, the others are at other stages meanwhile.
    """

    def __init__(self, share: float, most_sessions: int = 0) -> None:
        self._share = share  # of the model's layers
        self._memory = MEMORY_STEPS * math.ceil(1 / share)
        self._most = most_sessions or math.inf
        self._steps = 0
        self._seen: dict[str, int] = {}  # the last step of each session
        self._step_seconds = 0.0

    def ran(self, sessions: Iterable[str], seconds: float) -> None:
        """A decode step of these sessions took so long."""
        self._steps += 1
        self._seen |= dict.fromkeys(sessions, self._steps)
        recent = self._steps - self._memory
        self._seen = {name: step for name, step in self._seen.items() if step > recent}
        known = self._step_seconds or seconds
        self._step_seconds = known + FRESHNESS * (seconds - known)

    def left(self, session: str) -> None:
        """A session ended: nobody waits for it."""
        self._seen.pop(session, None)

    @property
    def wanted(self) -> int:
        """How many sessions a step should have."""
        return self._part_of(len(self._seen))

    def at_most(self, waiting: Iterable[str]) -> int:
        """How many of the sessions that wait may be in one step."""
        return self._part_of(len(self._seen.keys() | set(waiting)))

    def _part_of(self, sessions: int) -> int:
        return int(min(math.ceil(sessions * self._share), self._most))

    @property
    def patience_seconds(self) -> float:
        """How long a step may wait for them."""
        return PATIENCE * self._step_seconds
