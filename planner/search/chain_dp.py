"""Exact dynamic programming over stage order, groups and layers: the pipeline with least seconds.

State: devices used (as counts for each class), the last group, layers done; value: least seconds.
One run for each first group, because the sampled token travels back to it (HexGen, section 4,
with the return hop and uneven groups added).
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.device_classes import Classes
from planner.problem import Numbers
from planner.search.stage_table import Row

NDInt = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
States = dict[int, tuple[list[int], Numbers]]  # used code -> last groups, seconds [group, layers]


@dataclass(frozen=True, slots=True)
class Link:
    """One stage of a chain: its group and how many layers it holds."""

    row: Row
    layers: int


@dataclass(frozen=True, eq=False)
class Chains:
    """The tables of one search: rows, their codes, and hop seconds between any two of them."""

    classes: Classes
    rows: Sequence[Row]
    hops: Numbers  # [from, to]
    backs: Numbers  # [last, first], the way of the sampled token
    floor: float  # no layer anywhere takes less

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return len(self.rows[0].middle) - 1

    def codes(self) -> NDInt:
        """A number for each group such that disjoint unions add."""
        weights = np.cumprod([1, *(count + 1 for count in self.classes.counts[:-1])])
        return np.array([int(np.dot(row.counts, weights)) for row in self.rows], dtype=np.int64)


def best_chain(chains: Chains, limit: float = np.inf) -> tuple[float, list[Link]]:
    """The chain with the least seconds below `limit`, and its seconds; empty if there is none."""
    best: tuple[float, list[Link]] = (limit, [])
    if not chains.rows:
        return np.inf, []
    for number, row in enumerate(chains.rows):
        alone = float(row.only[:, -1].min())
        if alone < best[0]:
            best = (alone, [Link(row, chains.layers)])
        best = _FromFirst(chains, number).improve(best)
    return best if best[1] else (np.inf, [])


class _FromFirst:
    """The search over chains that begin with one group."""

    def __init__(self, chains: Chains, first: int) -> None:
        self.chains = chains
        self.first = first
        self.codes = chains.codes()
        self.counts = np.array([row.counts for row in chains.rows])
        self.middle = np.array([row.middle for row in chains.rows])
        self.last = np.array([row.last.min(axis=0) for row in chains.rows])
        self.rest = chains.floor * np.arange(chains.layers, -1.0, -1.0)
        self.states: States = {}
        self.waiting: list[int] = []  # codes reached, the smallest is always complete
        self.used = {int(self.codes[first]): self.counts[first]}

    def improve(self, best: tuple[float, list[Link]]) -> tuple[float, list[Link]]:
        """The better of `best` and the best chain from this first group."""
        start = self.chains.rows[self.first].first.min(axis=0)[None, :]
        self.states[int(self.codes[self.first])] = ([self.first], start)
        self.waiting = [int(self.codes[self.first])]
        while self.waiting:
            best = self._extend(heapq.heappop(self.waiting), best)
        return best

    def _extend(self, code: int, best: tuple[float, list[Link]]) -> tuple[float, list[Link]]:
        free = np.array(self.chains.classes.counts) - self.used[code]
        nexts = np.flatnonzero((self.counts <= free).all(axis=1))
        lasts, seconds = self.states[code]
        if not len(nexts):
            return best
        hops = self.chains.hops[lasts][:, nexts]
        arrive: Numbers = (seconds[:, None, :] + hops[:, :, None]).min(axis=0)
        arrive = np.where(arrive + self.rest < best[0], arrive, np.inf)
        alive = np.isfinite(arrive).any(axis=1)
        nexts, arrive = nexts[alive], arrive[alive]
        if not len(nexts):
            return best
        best = self._close(code, nexts, arrive, best)
        self._grow(code, nexts, arrive)
        return best

    def _close(
        self, code: int, nexts: NDInt, arrive: Numbers, best: tuple[float, list[Link]]
    ) -> tuple[float, list[Link]]:
        ends = arrive + self.last[nexts][:, ::-1] + self.chains.backs[nexts, self.first][:, None]
        place = int(np.argmin(ends))
        row, at = divmod(place, ends.shape[1])
        if not ends[row, at] < best[0]:
            return best
        last = int(nexts[row])
        tail = Link(self.chains.rows[last], self.chains.layers - at)
        return float(ends[row, at]), [*self._trace(code, last, at), tail]

    def _grow(self, code: int, nexts: NDInt, arrive: Numbers) -> None:
        size = arrive.shape[1]
        padded = np.concatenate([np.full((len(nexts), size - 1), np.inf), arrive], axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=1)
        sums = windows[:, :, ::-1] + self.middle[nexts][:, None, :]
        reached = sums.min(axis=2)
        for row, number in enumerate(nexts):
            if not np.isfinite(reached[row]).any():
                continue
            union = code + int(self.codes[number])
            if union not in self.states:
                self.used[union] = self.used[code] + self.counts[number]
                heapq.heappush(self.waiting, union)
            lasts, seconds = self.states.get(union, ([], np.empty((0, size))))
            merged = np.concatenate([seconds, reached[row : row + 1]])
            self.states[union] = ([*lasts, int(number)], merged)

    def _trace(self, code: int, after: int, at: int) -> list[Link]:
        """The stages that fill `at` layers with the devices of `code`, before group `after`."""
        links: list[Link] = []
        while True:
            lasts, seconds = self.states[code]
            pick = int(np.argmin(seconds[:, at] + self.chains.hops[lasts, after]))
            group, parent = lasts[pick], code - int(self.codes[lasts[pick]])
            if parent == 0:
                return [Link(self.chains.rows[group], at), *links]
            begin = self._begin(parent, group, at)
            links.insert(0, Link(self.chains.rows[group], at - begin))
            code, after, at = parent, group, begin

    def _begin(self, parent: int, group: int, at: int) -> int:
        lasts, seconds = self.states[parent]
        arrive = (seconds + self.chains.hops[lasts, group][:, None]).min(axis=0)
        return int(np.argmin(arrive[: at + 1] + self.middle[group][: at + 1][::-1]))
