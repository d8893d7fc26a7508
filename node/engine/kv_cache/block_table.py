"""Slots: where the rows of one session lie, and those of a closed session's prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from node.engine.kv_cache.block_pool import PAGE_TOKENS, pages_for
from node.engine.kv_cache.prefix_cache import NOBODYS, Prompt
from node.engine.shard_io import Array

NOWHERE: Array = np.empty(0, np.int64)


@dataclass(slots=True)
class Slot:
    """One session's place: `length` rows are written, up to `capacity` may be."""

    session: str
    capacity: int  # tokens
    promised: int = 0  # pages that it gets for certain
    wanted: range = range(0)  # pages that would lie well for it
    pages: list[int] = field(default_factory=list)  # that hold its rows, in order
    starts: Array = field(default_factory=lambda: NOWHERE)  # first row of each page, int64
    is_straight: bool = True  # its pages lie one behind the other
    lent: int = 0  # pages of others that it holds until its first step, and may have to copy then
    is_bare: bool = False  # it holds such pages without room for copies: nobody else may share them
    length: int = 0
    prompt: Prompt = NOBODYS

    @property
    def untaken(self) -> int:
        """Promised pages that it does not hold yet."""
        return max(0, self.promised - len(self.pages))

    @property
    def owed(self) -> int:
        """Pages that it may still ask for and must get."""
        return self.untaken + self.lent

    @property
    def remaining(self) -> int:
        """Pages that it may take beyond its promise."""
        return pages_for(self.capacity) - max(self.promised, len(self.pages))

    @property
    def prefix(self) -> int:
        """Rows of the prompt that others may share."""
        return min(self.length, len(self.prompt.ids))

    def lie_in(self, pages: Sequence[int]) -> None:
        """Have the rows in these pages."""
        self.pages = list(pages)
        self.starts = np.array(pages, np.int64) * PAGE_TOKENS
        self.is_straight = bool((np.diff(self.starts) == PAGE_TOKENS).all())

    def straight(self, first: int, end: int) -> slice:
        """Rows [first, end) of pages that lie one behind the other, in the arena."""
        begin = int(self.starts[0])
        return slice(begin + first, begin + end)

    def rows(self, first: int, end: int) -> Array:
        """Where rows [first, end) lie in the arena: int64."""
        at = np.arange(first, end)
        rows: Array = self.starts[at // PAGE_TOKENS] + at % PAGE_TOKENS
        return rows


@dataclass(frozen=True, slots=True)
class Kept:
    """The rows of a closed session's prompt."""

    prompt: Prompt
    count: int
    pages: list[int]
