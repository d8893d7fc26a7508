"""PrefixCache: prompts whose rows are kept after their session: a beginning is computed once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from node.engine.kv_cache.block_pool import BlockPool

MOST_PREFIXES = 64  # of closed sessions; the least recently used one goes first
FEWEST_ROWS = 16  # of a prefix: fewer are computed as quickly as they are found


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
class CachedPrefix:
    """The first `count` rows of a prompt, which are computed, and the blocks that hold them."""

    prompt: Prompt
    count: int
    blocks: list[int]

    def shared_with(self, prompt: Prompt) -> int:
        """How many rows begin `prompt`; its last one never does, since its logits are wanted."""
        return min(prompt.shared_with(self.prompt), self.count, len(prompt.ids) - 1)


class PrefixCache:
    """The prefixes of closed sessions; their blocks are pinned in `pool`.

    What frees blocks returns them, to be cleared.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._prefixes: dict[int, CachedPrefix] = {}  # the latest used last
        self._added = 0  # so far

    def __len__(self) -> int:
        return len(self._prefixes)

    def __iter__(self) -> Iterator[CachedPrefix]:
        """The prefixes, the one that goes first first."""
        return iter(self._prefixes.values())

    def longest(self, prompt: Prompt, others: Sequence[CachedPrefix]) -> tuple[int, list[int]]:
        """How many rows begin `prompt`, here or among `others`, and the blocks of those."""
        keys, offers = list(self._prefixes), [*self, *others]
        counts = [each.shared_with(prompt) for each in offers]
        most = max(counts, default=0)
        if most <= 0:
            return 0, []
        place = counts.index(most)
        if place < len(keys):
            self._touch(keys[place])
        return most, offers[place].blocks

    def add(self, prefix: CachedPrefix) -> list[int]:
        """Keep a prefix, unless one that is here begins with it; those that begin it go."""
        freed: list[int] = []
        for key, other in list(self._prefixes.items()):
            shared = prefix.prompt.shared_with(other.prompt)
            if min(shared, other.count) >= prefix.count:
                self._touch(key)
                return freed
            if shared >= other.count:
                freed += self._drop(key)
        self._added += 1
        self._prefixes[self._added] = prefix
        self._pool.pin(prefix.blocks)
        return freed

    def trim(self) -> list[int]:
        """Forget the least recently used prefixes beyond MOST_PREFIXES."""
        freed: list[int] = []
        while len(self) > MOST_PREFIXES:
            freed += self.evict()
        return freed

    def evict(self) -> list[int]:
        """Forget the least recently used prefix; there must be one."""
        return self._drop(next(iter(self._prefixes)))

    def evict_in(self, blocks: Sequence[int]) -> list[int]:
        """Forget the prefixes that lie in some of these blocks: a session writes into them."""
        freed: list[int] = []
        if any(map(self._pool.is_pinned, blocks)):
            for key in [k for k, each in self._prefixes.items() if set(each.blocks) & set(blocks)]:
                freed += self._drop(key)
        return freed

    def _touch(self, key: int) -> None:
        self._prefixes[key] = self._prefixes.pop(key)

    def _drop(self, key: int) -> list[int]:
        return self._pool.unpin(self._prefixes.pop(key).blocks)
