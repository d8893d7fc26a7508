"""BlockTable: where the rows of one session lie."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from node.engine.kv_cache.block_pool import BLOCK_TOKENS, blocks_for
from node.engine.kv_cache.prefix_cache import NOBODYS, CachedPrefix, Prompt

Rows = npt.NDArray[np.int64]
NOWHERE: Rows = np.empty(0, np.int64)


@dataclass(slots=True)
class BlockTable:
    """One session's place: `length` rows are written, up to `capacity` may be."""

    session: str
    capacity: int  # tokens
    reserved: int = 0  # blocks that it gets for certain
    earmarked: range = range(0)  # blocks that would lie well for it: a hint, no reservation
    blocks: list[int] = field(default_factory=list)  # that hold its rows, in order
    starts: Rows = field(default_factory=lambda: NOWHERE)  # first row of each block, int64
    is_contiguous: bool = True  # its blocks lie one behind the other
    copy_on_write: int = 0  # blocks of others, that it may have to copy at its first step
    without_cow_reserve: bool = False  # no room for such copies: nobody else may share the blocks
    length: int = 0
    prompt: Prompt = NOBODYS

    @property
    def unallocated(self) -> int:
        """Reserved blocks that it does not hold yet."""
        return max(0, self.reserved - len(self.blocks))

    @property
    def outstanding(self) -> int:
        """Blocks that it may still ask for and must get."""
        return self.unallocated + self.copy_on_write

    @property
    def remaining(self) -> int:
        """Blocks that it may take beyond its reservation."""
        return blocks_for(self.capacity) - max(self.reserved, len(self.blocks))

    @property
    def prefix(self) -> int:
        """Rows of the prompt that others may share."""
        return min(self.length, len(self.prompt.ids))

    def as_prefix(self) -> CachedPrefix:
        """What others may share."""
        return CachedPrefix(self.prompt, self.prefix, self.blocks[: blocks_for(self.prefix)])

    def set_blocks(self, blocks: Sequence[int]) -> None:
        """Have the rows in these blocks."""
        self.blocks = list(blocks)
        self.starts = np.array(blocks, np.int64) * BLOCK_TOKENS
        self.is_contiguous = bool((np.diff(self.starts) == BLOCK_TOKENS).all())

    def contiguous(self, first: int, end: int) -> slice:
        """Rows [first, end) of blocks that lie one behind the other, in the arena."""
        begin = int(self.starts[0])
        return slice(begin + first, begin + end)

    def slot_mapping(self, first: int, end: int) -> Rows:
        """Where rows [first, end) lie in the arena: int64."""
        at = np.arange(first, end)
        slots: Rows = self.starts[at // BLOCK_TOKENS] + at % BLOCK_TOKENS
        return slots
