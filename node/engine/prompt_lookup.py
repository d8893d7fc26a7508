"""NgramProposer: drafts of the next ids from what followed the same n-gram earlier."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MOST_DRAFTS = 8  # ids proposed at once
LONGEST_NGRAM = 3  # ids that must have occurred before; longer ones are tried first
MOST_LEARNT = 1 << 14  # ids of a long text, its last ones: a replay must not hold a step up


class NgramProposer:
    """Where every n-gram of one session's ids was last followed by another id."""

    def __init__(self) -> None:
        self._begin = 0  # ids before those that were learnt
        self._ids: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}  # n-gram -> place of the id behind it

    def propose(self, ids: Sequence[int] | npt.NDArray[np.int64], most: int) -> list[int]:
        """Return up to `most` ids that may follow `ids`, which only ever grow between calls."""
        self._learn(ids)
        at = self._match()
        if at is None:
            return []
        whole = [*self._ids[at:], *([0] * most)]  # a repeating text runs on into its own drafts
        period = len(self._ids) - at
        for place in range(period, period + most):
            whole[place] = whole[place - period]
        return whole[:most]

    def _learn(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> None:
        if not self._ids or len(ids) < self._begin + len(self._ids):  # new, or rolled back
            self._begin, self._ids, self._follows = max(0, len(ids) - MOST_LEARNT), [], {}
        for each in np.asarray(ids[self._begin + len(self._ids) :], np.int64).tolist():
            for ngram in _suffixes(self._ids):
                self._follows[ngram] = len(self._ids)
            self._ids.append(each)

    def _match(self) -> int | None:
        found = (self._follows.get(ngram) for ngram in _suffixes(self._ids))
        return next((place for place in found if place is not None), None)


def _suffixes(ids: Sequence[int]) -> list[tuple[int, ...]]:
    lengths = range(min(LONGEST_NGRAM, len(ids)), 0, -1)
    return [tuple(ids[-length:]) for length in lengths]
