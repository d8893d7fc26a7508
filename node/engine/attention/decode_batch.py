"""DecodeBatch: one new token of each of several sessions, and where the rows lie that they see."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from node.engine.kernels.small_batch import SmallBatch, index_rows
from node.engine.kv_cache.arena import KVStore
from node.engine.kv_cache.block_pool import BLOCK_TOKENS, blocks_for
from node.engine.kv_cache.block_table import BlockTable

T = TypeVar("T")
RowIndex = slice | torch.Tensor
NO_BLOCK = -1


@dataclass(slots=True)
class TokenSpan:
    """New rows of one session from `position` on; `first` is the place of its first row."""

    table: BlockTable
    position: int
    count: int
    first: int
    step_rows: slice = field(init=False)  # its place in the step
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)
    seen: dict[int, torch.Tensor] = field(default_factory=dict)  # by first row

    def __post_init__(self) -> None:
        self.step_rows = slice(self.first, self.first + self.count)

    @property
    def end(self) -> int:
        """Rows that the last token of the chunk sees, itself included."""
        return self.position + self.count

    def rows(self, start: int, device: torch.device) -> RowIndex:
        """Where its session's rows from `start` on lie: a slice reads them without a copy."""
        if self.table.is_contiguous:
            return self.table.contiguous(start, self.end)
        if start not in self.seen:
            self.seen[start] = torch.from_numpy(self.table.slot_mapping(start, self.end)).to(device)
        return self.seen[start]

    @property
    def table_and_positions(self) -> tuple[BlockTable, range]:
        """Its block table and the positions of its rows."""
        return self.table, range(self.position, self.end)


class DecodeBatch:
    """Tokens of unlike sessions that are attended in one call.

    What a device needs is derived from `blocks` and `positions` there, so that a recorded step can
    be given others.
    """

    def __init__(self, store: KVStore, spans: Sequence[TokenSpan], like: torch.Tensor) -> None:
        self._store, self._spans, self._like = store, spans, like
        self.least = min(span.position for span in spans)
        self.most = max(span.position for span in spans)
        self._cache: dict[tuple[str, int | None], Any] = {}

    @cached_property
    def step_rows(self) -> RowIndex:
        """Their places in the step."""
        places = [span.first for span in self._spans]
        if places == list(range(places[0], places[0] + len(places))):
            return slice(places[0], places[0] + len(places))
        return torch.tensor(places, device=self._like.device)

    @cached_property
    def positions(self) -> torch.Tensor:
        """Of the tokens, [sessions]."""
        places = [span.position for span in self._spans]
        return torch.tensor(places, device=self._like.device)

    @cached_property
    def blocks(self) -> torch.Tensor:
        """The blocks that hold what each session sees, then NO_BLOCK: [sessions, most]."""
        return block_tables_of([span.table for span in self._spans], self.most).to(
            self._like.device
        )

    @property
    def seen_rows(self) -> int:
        """Rows that they see, all together."""
        return sum(span.end for span in self._spans)

    @cached_property
    def small_batch(self) -> SmallBatch:
        """The tokens as the kernels want them."""
        index = index_rows([span.table_and_positions for span in self._spans])
        return SmallBatch(*index, self._store.arena.flat)

    @cached_property
    def length_groups(self) -> list[tuple["DecodeBatch", list[int]]]:
        """Sessions of like lengths, with their places among these: padded together."""
        places: dict[int, list[int]] = defaultdict(list)
        for place, span in enumerate(self._spans):
            places[blocks_for(span.end).bit_length()].append(place)
        if len(places) == 1:
            return [(self, list(range(len(self._spans))))]
        parts = ([self._spans[place] for place in each] for each in places.values())
        batches = (DecodeBatch(self._store, part, self._like) for part in parts)
        return list(zip(batches, places.values(), strict=True))

    def seen(self, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the arena that the sessions see, padded, and what to add to their scores.

        Two tensors of [sessions, length]: int64, and 0 or -inf. Padding repeats rows of their own.
        """
        return self.cached(("padded", window), lambda: self._padded(window))

    def cached(self, key: tuple[str, int | None], make: Callable[[], T]) -> T:
        """What is made once for all layers of a step."""
        if key not in self._cache:
            self._cache[key] = make()
        found: T = self._cache[key]
        return found

    def _padded(self, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        start = 0 if window is None else max(0, self.least - window + 1)
        at = torch.arange(start, self.most + 1, device=self._like.device)
        blocks = self.blocks[:, at // BLOCK_TOKENS]
        blocks = torch.where(blocks == NO_BLOCK, self.blocks[:, :1], blocks)
        mask = mask_of(self.positions, at, window, self._like)
        return blocks * BLOCK_TOKENS + at % BLOCK_TOKENS, mask

    def fix_shapes(self, most: int) -> None:
        """Have shapes that follow from the number of sessions and position `most` alone."""
        self.least, self.most = 0, most
        self.length_groups = [(self, list(range(len(self._spans))))]

    def set_inputs(self, positions: torch.Tensor, blocks: torch.Tensor) -> None:
        """Take other positions and blocks of the same shapes."""
        self.positions, self.blocks = positions, blocks
        self._cache.clear()


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
