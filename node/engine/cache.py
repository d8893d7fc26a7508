"""Our own KV store: one arena per layer, cut into power-of-two blocks of tokens.

A session gets one block for life, so a step never allocates and never copies old rows. Blocks of
one size are rows of one view of the arena, so neighbours are attended together without a gather.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from node.engine.kernels import Array
from node.engine.prefixes import LEAST_KEPT, MOST_KEPT, NOBODYS, Prompt, Rows, longest
from swarm.errors import EngineError, NoRoom

SMALLEST_BLOCK = 64  # tokens
MOST_TOKENS = 1 << 20  # in one store


@dataclass(slots=True)
class Slot:
    """One session's place: `length` rows are written, `size` fit."""

    session: str
    start: int  # first token of its block in the arena
    size: int  # tokens, a power of two times SMALLEST_BLOCK
    capacity: int  # tokens asked for
    length: int = 0
    written: int = 0  # the most rows ever written
    prompt: Prompt = NOBODYS

    @property
    def prefix(self) -> Rows:
        """The rows of the prompt that others may copy."""
        return Rows(self.start, self.prompt, min(self.length, len(self.prompt.ids)))

    @property
    def index(self) -> int:
        """The row of this block in the view of its size."""
        return self.start // self.size


@dataclass(slots=True)
class Blocks:
    """A buddy allocator over `tokens` places."""

    tokens: int
    free: dict[int, set[int]] = field(default_factory=dict)  # size -> starts

    def __post_init__(self) -> None:
        if self.free:
            return
        start = 0
        for size in _sizes_down(self.tokens):
            if start + size <= self.tokens:
                self.free.setdefault(size, set()).add(start)
                start += size

    @property
    def free_tokens(self) -> int:
        """Tokens in free blocks, of whatever size."""
        return sum(size * len(starts) for size, starts in self.free.items())

    def copy(self) -> "Blocks":
        """The same blocks, to try something."""
        return Blocks(self.tokens, {size: set(starts) for size, starts in self.free.items()})

    def take(self, size: int) -> int | None:
        """Return the start of a block of `size`, lowest first, or None."""
        fitting = [each for each, starts in self.free.items() if starts and each >= size]
        if not fitting:
            return None
        found = min(fitting)
        start = min(self.free[found])
        self.free[found].remove(start)
        while found > size:  # keep the lower half, free the upper one
            found //= 2
            self.free.setdefault(found, set()).add(start + found)
        return start

    def give(self, start: int, size: int) -> None:
        """Free a block and join it with its free buddies."""
        while (buddy := start ^ size) in self.free.get(size, ()):
            self.free[size].remove(buddy)
            start, size = min(start, buddy), size * 2
        self.free.setdefault(size, set()).add(start)


class KVStore:
    """Keys and values of the sessions of one shard, within `tokens` tokens."""

    def __init__(
        self,
        layers: Sequence[int],
        kv_heads: int,
        head_dims: tuple[int, int],  # of keys and of values
        tokens: int,
        like: torch.Tensor,
    ) -> None:
        self._kv_heads, self._head_dims = kv_heads, head_dims
        self._tokens = tokens - tokens % SMALLEST_BLOCK
        self._blocks = Blocks(self._tokens)
        self._slots: dict[str, Slot] = {}
        self._kept: dict[int, Slot] = {}  # of closed sessions by start, the latest used last
        widths = [kv_heads * head_dim for head_dim in head_dims]
        self._arenas = {
            layer: tuple(_zeros(self._tokens * width, like) for width in widths) for layer in layers
        }
        self._views: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._flat: dict[int, tuple[Array, Array]] = {}

    @property
    def free_tokens(self) -> int:
        """Tokens that new sessions may reserve, in total: kept prompts give way to them."""
        return self._blocks.free_tokens + sum(slot.size for slot in self._kept.values())

    @property
    def row_values(self) -> int:
        """Values in one token's keys, in one layer."""
        return self._kv_heads * self._head_dims[0]

    @property
    def sessions(self) -> list[str]:
        """The open sessions."""
        return list(self._slots)

    def shrink(self, tokens: int) -> None:
        """Use `tokens` only, before any session; raises EngineError while there are some."""
        if self._slots:
            raise EngineError("A KV store in use cannot shrink.", "Close its sessions first.")
        self._tokens = min(tokens - tokens % SMALLEST_BLOCK, self._tokens)
        self._blocks = Blocks(self._tokens)
        self._views.clear()

    def open(self, session: str, capacity: int) -> Slot:
        """Reserve `capacity` tokens for a new session; raises NoRoom and EngineError."""
        if session in self._slots:
            raise EngineError(f"Session {session} is open already.", "Close it first.")
        if capacity < 1:
            raise EngineError(f"A session of {capacity} tokens is no session.")
        size = block_of(capacity)
        start = self._place_for(size)
        if start is None:
            raise NoRoom(f"No room for {capacity} tokens, {self.free_tokens} are free.")
        slot = self._slots[session] = Slot(session, start, size, capacity)
        return slot

    def share(self, session: str, prompt: Prompt) -> int:
        """Give a new session the rows of its prompt that are here already; returns how many."""
        slot = self.slot(session)
        places = {each.start: each for each in (*self._kept.values(), *self._slots.values())}
        del places[slot.start]
        place, count = longest(prompt, (each.prefix for each in places.values()))
        slot.prompt = prompt
        if count:
            self._copy(places[place], slot, count)
            slot.length = slot.written = count
        if place in self._kept:
            self._kept[place] = self._kept.pop(place)
        return count

    def slot(self, session: str) -> Slot:
        """The place of an open session; raises EngineError."""
        if session not in self._slots:
            raise EngineError(f"Session {session} is not open here.", "Open it again.")
        return self._slots[session]

    def rollback(self, session: str, length: int) -> None:
        """Forget the rows from `length` on; raises EngineError."""
        slot = self.slot(session)
        if not 0 <= length <= slot.length:
            raise EngineError(f"Session {session} cannot go back to {length} of {slot.length}.")
        slot.length = length

    def close(self, session: str) -> None:
        """Free a session; one that is not open is fine."""
        slot = self._slots.pop(session, None)
        if slot is None:
            return
        self._kept[slot.start] = slot
        if slot.prefix.count < LEAST_KEPT or self._is_kept_elsewhere(slot):
            self._drop(slot)
        while len(self._kept) > MOST_KEPT:
            self._drop(next(iter(self._kept.values())))

    def _is_kept_elsewhere(self, slot: Slot) -> bool:
        """Whether another kept prompt begins with this one; those that begin this one go."""
        mine = slot.prefix.count
        for other in [each for each in self._kept.values() if each is not slot]:
            shared, theirs = slot.prompt.shared_with(other.prompt), other.prefix.count
            if min(shared, theirs) >= mine:
                self._kept[other.start] = self._kept.pop(other.start)
                return True
            if shared >= theirs:
                self._drop(other)
        return False

    def _place_for(self, size: int) -> int | None:
        """A free block, if need be in place of kept prompts; they stay if that does not help.

        So a refusal changes nothing, and the ranks of a stage keep the same blocks.
        """
        start = self._blocks.take(size)
        if start is None and self._kept:
            trial = self._blocks.copy()
            for slot in self._kept.values():
                trial.give(slot.start, slot.size)
            if trial.take(size) is None:
                return None
            while start is None:
                self._drop(next(iter(self._kept.values())))
                start = self._blocks.take(size)
        return start

    def _copy(self, source: Slot, target: Slot, count: int) -> None:
        for layer in self._arenas:
            views = zip(self.view(layer, source.size), self.view(layer, target.size), strict=True)
            for theirs, mine in views:
                mine[target.index, :, :count] = theirs[source.index, :, :count]

    def _drop(self, slot: Slot) -> None:
        """Forget a kept prompt and free its block."""
        del self._kept[slot.start]
        for layer in self._arenas:  # what a stranger's NaN left must not meet the next session
            for view in self.view(layer, slot.size):
                view[slot.index, :, : slot.written].zero_()
        self._blocks.give(slot.start, slot.size)

    def view(self, layer: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `layer` as blocks of one size: [blocks, kv heads, size, head dim]."""
        found = self._views.get((layer, size))
        if found is None:
            blocks = self._tokens // size
            keys, values = (
                arena[: blocks * size * self._kv_heads * head_dim].view(
                    blocks, self._kv_heads, size, head_dim
                )
                for arena, head_dim in zip(self._arenas[layer], self._head_dims, strict=True)
            )
            found = self._views[(layer, size)] = (keys, values)
        return found

    def flat(self, layer: int) -> tuple[Array, Array]:
        """Keys and values of `layer` as they lie on a CPU: [tokens x kv heads x head dim].

        A block holds its rows head by head.
        """
        found = self._flat.get(layer)
        if found is None:
            keys, values = (arena.numpy() for arena in self._arenas[layer])
            found = self._flat[layer] = (keys, values)
        return found


def block_of(capacity: int) -> int:
    """The size of the block that holds `capacity` tokens."""
    return SMALLEST_BLOCK * (1 << max(0, (capacity - 1) // SMALLEST_BLOCK).bit_length())


def _zeros(count: int, like: torch.Tensor) -> torch.Tensor:
    """Zeros, since masked rows still meet a product and 0 x NaN is NaN; on CPU they cost no page.

    numpy asks the kernel for zero pages that are only backed when written; torch writes them.
    """
    if like.device.type != "cpu" or not count:
        return like.new_zeros(count)
    flat = np.zeros(count * like.element_size(), dtype=np.uint8)
    return torch.from_numpy(flat).view(like.dtype)


def _sizes_down(tokens: int) -> list[int]:
    steps = max(0, (tokens // SMALLEST_BLOCK).bit_length())
    return [SMALLEST_BLOCK << step for step in reversed(range(steps))]
