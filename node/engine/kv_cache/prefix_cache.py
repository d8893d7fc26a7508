"""Prompts whose rows are kept after their session, so that the same beginning is computed once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MOST_KEPT = 64  # prompts of closed sessions; the least recently used one goes first
LEAST_KEPT = 16  # rows: fewer are computed as quickly as they are found


@dataclass(frozen=True, slots=True)
class Prompt:
    """The ids that a session was opened with, and whose they are: only those share rows."""

    owner: str
    ids: npt.NDArray[np.int64]

    @classmethod
    def of(cls, owner: str, ids: Sequence[int] | npt.NDArray[np.integer]) -> "Prompt":
        """The prompt of a session."""
        return cls(owner, np.array(ids, dtype=np.int64))

    def shared_with(self, other: "Prompt") -> int:
        """How many leading tokens are the same; 0 for another owner."""
        if not self.owner or self.owner != other.owner:
            return 0
        most = min(len(self.ids), len(other.ids))
        differing = np.flatnonzero(self.ids[:most] != other.ids[:most])
        return int(differing[0]) if len(differing) else most


NOBODYS = Prompt.of("", ())


@dataclass(frozen=True, slots=True)
class Rows:
    """The first `count` rows of a prompt, which are computed and lie at `place`."""

    place: int
    prompt: Prompt
    count: int


def longest(prompt: Prompt, offers: Iterable[Rows]) -> tuple[int, int]:
    """The place of the most rows that begin `prompt`, and how many they are.

    The last row of a prompt is never shared: its logits are wanted.
    """
    best, most = -1, 0
    for rows in offers:
        count = min(prompt.shared_with(rows.prompt), rows.count, len(prompt.ids) - 1)
        if count > most:
            best, most = rows.place, count
    return best, most
