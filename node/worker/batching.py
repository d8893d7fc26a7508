"""Batching: how many sessions and rows of prompts belong in one step, and for how long to wait.

A step of many tokens costs little more than a step of one, but the tokens of a turn come in one by
one: a stage that runs at once computes the first alone, and never again has them together. A stage
that runs all of them at once leaves the other stages idle meanwhile.
"""

import math
from collections.abc import Iterable

from node.worker.scheduler import CHUNK_TOKENS

MEMORY_STEPS = 4  # a session that missed its turn so often is not waited for
WINDOW = 0.5  # of a decode step's time
FRESHNESS = 0.2  # weight of the newest step
STEP_SECONDS = 0.03
LEAST_TOKENS = 64  # a core's products are nearly as quick a row as with 256
CHUNK_FRESHNESS = 0.3  # weight of the newest step


class DecodeBatcher:
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
    def target_size(self) -> int:
        """How many sessions a step should have."""
        return self._part_of(len(self._seen))

    def at_most(self, waiting: Iterable[str]) -> int:
        """How many of the sessions that wait may be in one step."""
        return self._part_of(len(self._seen.keys() | set(waiting)))

    def _part_of(self, sessions: int) -> int:
        return int(min(math.ceil(sessions * self._share), self._most))

    @property
    def window_seconds(self) -> float:
        """How long a step may wait for them."""
        return WINDOW * self._step_seconds


class ChunkSize:
    """How many rows of a prompt go into one step, by the time that a row takes here.

    Whoever comes meanwhile waits for the step, so it should be short; but a step of very few rows
    reads all weights for little. A fast device takes all that a client sends at once.
    """

    def __init__(self) -> None:
        self._row_seconds = 0.0

    def ran(self, tokens: int, seconds: float) -> None:
        """A step with so many rows took so long."""
        found = seconds / tokens
        known = self._row_seconds or found
        self._row_seconds = known + CHUNK_FRESHNESS * (found - known)

    @property
    def tokens(self) -> int:
        """A power of two from LEAST_TOKENS to CHUNK_TOKENS; the least until a step was timed."""
        size = LEAST_TOKENS
        while self._row_seconds and size < CHUNK_TOKENS:
            if 2 * size * self._row_seconds > STEP_SECONDS:
                break
            size *= 2
        return size
