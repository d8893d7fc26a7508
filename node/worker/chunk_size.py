"""ChunkSize: how many rows of a prompt go into one step on this device; pure.

Whoever comes meanwhile waits for the step, so it should be short; but a step of very few rows
reads all weights for little. A fast device takes all that a client sends at once.
"""

from node.worker.scheduler import CHUNK_TOKENS

STEP_SECONDS = 0.03
LEAST_TOKENS = 64  # a core's products are nearly as quick a row as with 256
FRESHNESS = 0.3  # weight of the newest step


class ChunkSize:
    """Follows the time that a row of a prompt takes here."""

    def __init__(self) -> None:
        self._row_seconds = 0.0

    def ran(self, tokens: int, seconds: float) -> None:
        """A step with so many rows took so long."""
        found = seconds / tokens
        known = self._row_seconds or found
        self._row_seconds = known + FRESHNESS * (found - known)

    @property
    def tokens(self) -> int:
        """A power of two from LEAST_TOKENS to CHUNK_TOKENS; the least until a step was timed."""
        size = LEAST_TOKENS
        while self._row_seconds and size < CHUNK_TOKENS:
            if 2 * size * self._row_seconds > STEP_SECONDS:
                break
            size *= 2
        return size
