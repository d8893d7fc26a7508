"""BlockPool: which blocks of a KV store are free, and how many sessions hold each other one.

A block is BLOCK_TOKENS rows of every layer. Sessions whose prompts begin alike share blocks.
"""

from collections.abc import Iterable, Sequence

BLOCK_TOKENS = 64


class BlockPool:
    """Counts holders of `count` blocks; what is pinned for later gives way to what is in use."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.available = count  # blocks that no session uses: free ones, and pinned ones
        self._ref_counts = [0] * count
        self._pins = [0] * count
        self._taken = bytearray(count)  # 1: in use or pinned
        self._earmarks = bytearray(count)  # 1: taken, or earmarked for the session before it

    def find_free(self, earmarked: Sequence[int]) -> int | None:
        """A free block: the first earmarked one, else one not earmarked, else any; or None."""
        for block in earmarked[:1]:
            if not self._taken[block]:
                return block
        for marks in (self._earmarks, self._taken):
            if (block := marks.find(0)) >= 0:
                return block
        return None

    def earmark(self, count: int) -> range:
        """Mark neighbouring free blocks for one session: `count`, or as many as there are.

        A mark reserves nothing: others only take these blocks last, so that runs stay whole.
        """
        while count and (start := self._earmarks.find(bytes(count))) < 0:
            count //= 2
        earmarked = range(start, start + count) if count else range(0)
        self._earmarks[earmarked.start : earmarked.stop] = b"\1" * count
        return earmarked

    def unmark(self, earmarked: Iterable[int]) -> None:
        """Forget that these blocks were earmarked for a session."""
        for block in earmarked:
            self._earmarks[block] = self._taken[block]

    def ref_count(self, block: int) -> int:
        """How many sessions use the block."""
        return self._ref_counts[block]

    def is_pinned(self, block: int) -> bool:
        """Whether a prompt is kept in the block."""
        return self._pins[block] > 0

    def acquire(self, blocks: Iterable[int]) -> None:
        """Count one more session that uses the blocks."""
        for block in blocks:
            self.available -= not self._ref_counts[block]
            self._ref_counts[block] += 1
            self._taken[block] = self._earmarks[block] = 1

    def release(self, blocks: Iterable[int]) -> list[int]:
        """Count one session less; returns the blocks that are free now."""
        freed = []
        for block in blocks:
            self._ref_counts[block] -= 1
            self.available += not self._ref_counts[block]
            freed += self._freed(block)
        return freed

    def pin(self, blocks: Iterable[int]) -> None:
        """Count one more prompt that is kept in the blocks."""
        for block in blocks:
            self._pins[block] += 1
            self._taken[block] = self._earmarks[block] = 1

    def unpin(self, blocks: Iterable[int]) -> list[int]:
        """Count one kept prompt less; returns the blocks that are free now."""
        freed = []
        for block in blocks:
            self._pins[block] -= 1
            freed += self._freed(block)
        return freed

    def _freed(self, block: int) -> list[int]:
        if self._ref_counts[block] or self._pins[block]:
            return []
        self._taken[block] = self._earmarks[block] = 0
        return [block]


def blocks_for(tokens: int) -> int:
    """How many blocks hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


def runs_of(blocks: Iterable[int]) -> list[range]:
    """Neighbouring blocks, joined."""
    runs: list[range] = []
    for block in sorted(blocks):
        if runs and runs[-1].stop == block:
            runs[-1] = range(runs[-1].start, block + 1)
        else:
            runs.append(range(block, block + 1))
    return runs
