"""Singles: one new token of each of several sessions, and where the rows lie that they see."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from node.engine.kernels.small_batch import FewRows, places_of
from node.engine.kv_cache.block_manager import KVStore
from node.engine.kv_cache.block_pool import BLOCK_TOKENS, blocks_for
from node.engine.kv_cache.block_table import BlockTable

T = TypeVar("T")
Here = slice | torch.Tensor
NO_BLOCK = -1


@dataclass(slots=True)
class Chunk:
    """New rows of one session from `position` on; `first` is the place of its first row."""

    table: BlockTable
    position: int
    count: int
    first: int
    here: slice = field(init=False)  # its place in the step
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)
    seen: dict[int, torch.Tensor] = field(default_factory=dict)  # by first row

    def __post_init__(self) -> None:
        self.here = slice(self.first, self.first + self.count)

    @property
    def end(self) -> int:
        """Rows that the last token of the chunk sees, itself included."""
        return self.position + self.count

    def rows(self, start: int, device: torch.device) -> Here:
        """Where its session's rows from `start` on lie: a slice reads them without a copy."""
        if self.table.is_contiguous:
            return self.table.contiguous(start, self.end)
        if start not in self.seen:
            self.seen[start] = torch.from_numpy(self.table.slot_mapping(start, self.end)).to(device)
        return self.seen[start]

    @property
    def span(self) -> tuple[BlockTable, range]:
        """Its block table and the positions of its rows."""
        return self.table, range(self.position, self.end)


class Singles:
    """Tokens of unlike sessions that are attended in one call.

    What a device needs is derived from `blocks` and `positions` there, so that a recorded step can
    be given others.
    """

    def __init__(self, store: KVStore, chunks: Sequence[Chunk], like: torch.Tensor) -> None:
        self._store, self._chunks, self._like = store, chunks, like
        self.least = min(chunk.position for chunk in chunks)
        self.most = max(chunk.position for chunk in chunks)
        self._kept: dict[tuple[str, int | None], Any] = {}

    @cached_property
    def here(self) -> Here:
        """Their places in the step."""
        places = [chunk.first for chunk in self._chunks]
        if places == list(range(places[0], places[0] + len(places))):
            return slice(places[0], places[0] + len(places))
        return torch.tensor(places, device=self._like.device)

    @cached_property
    def positions(self) -> torch.Tensor:
        """Of the tokens, [sessions]."""
        places = [chunk.position for chunk in self._chunks]
        return torch.tensor(places, device=self._like.device)

    @cached_property
    def blocks(self) -> torch.Tensor:
        """The blocks that hold what each session sees, then NO_BLOCK: [sessions, most]."""
        return block_tables_of([chunk.table for chunk in self._chunks], self.most).to(
            self._like.device
        )

    @property
    def seen_rows(self) -> int:
        """Rows that they see, all together."""
        return sum(chunk.end for chunk in self._chunks)

    @cached_property
    def few(self) -> FewRows:
        """The tokens as the kernels want them."""
        places = places_of([chunk.span for chunk in self._chunks])
        return FewRows(*places, self._store.flat)

    @cached_property
    def alike(self) -> list[tuple["Singles", list[int]]]:
        """Sessions of like lengths, with their places among these: padded together."""
        places: dict[int, list[int]] = defaultdict(list)
        for place, chunk in enumerate(self._chunks):
            places[blocks_for(chunk.end).bit_length()].append(place)
        if len(places) == 1:
            return [(self, list(range(len(self._chunks))))]
        parts = ([self._chunks[place] for place in each] for each in places.values())
        singles = (Singles(self._store, part, self._like) for part in parts)
        return list(zip(singles, places.values(), strict=True))

    def seen(self, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the arena that the sessions see, padded, and what to add to their scores.

        Two tensors of [sessions, length]: int64, and 0 or -inf. Padding repeats rows of their own.
        """
        return self.kept(("padded", window), lambda: self._padded(window))

    def kept(self, key: tuple[str, int | None], make: Callable[[], T]) -> T:
        """What is made once for all layers of a step."""
        if key not in self._kept:
            self._kept[key] = make()
        found: T = self._kept[key]
        return found

    def _padded(self, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        start = 0 if window is None else max(0, self.least - window + 1)
        at = torch.arange(start, self.most + 1, device=self._like.device)
        blocks = self.blocks[:, at // BLOCK_TOKENS]
        blocks = torch.where(blocks == NO_BLOCK, self.blocks[:, :1], blocks)
        mask = mask_of(self.positions, at, window, self._like)
        return blocks * BLOCK_TOKENS + at % BLOCK_TOKENS, mask

    def fix(self, most: int) -> None:
        """Have shapes that follow from the number of sessions and position `most` alone."""
        self.least, self.most = 0, most
        self.alike = [(self, list(range(len(self._chunks))))]

    def place(self, positions: torch.Tensor, blocks: torch.Tensor) -> None:
        """Take other positions and blocks of the same shapes."""
        self.positions, self.blocks = positions, blocks
        self._kept.clear()


def block_tables_of(tables: Sequence[BlockTable], most: int) -> torch.Tensor:
    """The blocks of the tables up to position `most`, then NO_BLOCK: int64 [tables, blocks]."""
    blocks = np.full((len(tables), most // BLOCK_TOKENS + 1), NO_BLOCK)
    for row, table in zip(blocks, tables, strict=True):
        own = table.blocks[: len(row)]
        row[: len(own)] = own
    return torch.from_numpy(blocks)


def mask_of(
    rows: torch.Tensor, columns: torch.Tensor, window: int | None, like: torch.Tensor
) -> torch.Tensor:
    """0 where the row's position sees the column's, else -inf: [rows, columns]."""
    sees = columns[None] <= rows[:, None]
    if window is not None:
        sees &= columns[None] > rows[:, None] - window
    return like.new_zeros(sees.shape).masked_fill_(~sees, float("-inf"))
