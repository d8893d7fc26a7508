"""One ragged step: the tokens of many sessions in a row, prefill chunks and decodes together."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from node.engine.attention import Options, attend_rows
from node.engine.cache import KVStore, Slot

SPARSEST = 0.5  # of a run of blocks, at least this share decodes: the rest is wasted work


@dataclass(slots=True)
class Chunk:
    """Tokens `[first, first + count)` of the step: rows of one slot from `position` on."""

    slot: Slot
    first: int
    position: int
    count: int
    masks: dict[int, torch.Tensor | None] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """Rows that the last token of the chunk sees, itself included."""
        return self.position + self.count


@dataclass(slots=True)
class Decodes:
    """Single tokens of neighbouring blocks of one size: attended as one padded batch."""

    size: int
    low: int  # blocks [low, high) of the view
    high: int
    tokens: torch.Tensor  # [sessions] their places in the step
    blocks: torch.Tensor  # [sessions] their blocks in the view
    places: torch.Tensor  # [sessions] blocks counted from `low`
    positions: torch.Tensor  # [sessions]
    is_dense: bool  # every block of the run decodes, in the order of the step
    masks: dict[int, tuple[int, torch.Tensor]] = field(default_factory=dict)


class Batch:
    """The plan of one step, made once and used by every layer."""

    def __init__(self, store: KVStore, chunks: Sequence[Chunk], dtype: torch.dtype) -> None:
        self._store = store
        self._dtype = dtype
        self._tokens = sum(chunk.count for chunk in chunks)
        singles = [chunk for chunk in chunks if chunk.count == 1]
        runs = [run for run in _runs_of(singles) if len(run) > 1]
        batched = {id(chunk) for run in runs for chunk in run}
        self._chunks = [chunk for chunk in chunks if id(chunk) not in batched]
        self._decodes = [_decodes_of(run) for run in runs]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # [heads, tokens, head dim]
        key: torch.Tensor,  # [kv heads, tokens, head dim]
        value: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        """Write the step's keys and values, attend: [1, tokens, heads, head dim]."""
        heads, _, head_dim = query.shape
        out = query.new_empty((self._tokens, heads, head_dim))
        for chunk in self._chunks:
            self._attend_chunk(layer, chunk, (query, key, value), out, options)
        for decodes in self._decodes:
            self._attend_decodes(layer, decodes, (query, key, value), out, options)
        return out.unsqueeze(0)

    def _attend_chunk(
        self,
        layer: int,
        chunk: Chunk,
        parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        out: torch.Tensor,
        options: Options,
    ) -> None:
        keys, values = self._store.view(layer, chunk.slot.size)
        here = slice(chunk.first, chunk.first + chunk.count)
        query, key, value = (part[:, here] for part in parts)
        block_keys, block_values = keys[chunk.slot.index], values[chunk.slot.index]
        block_keys[:, chunk.position : chunk.end] = key
        block_values[:, chunk.position : chunk.end] = value
        start = _window_start(chunk.position, options.window)
        kv_heads = key.shape[0]
        group = query.shape[0] // kv_heads
        result = attend_rows(
            query.reshape(1, kv_heads, group * chunk.count, -1),
            block_keys[None, :, start : chunk.end],
            block_values[None, :, start : chunk.end],
            self._chunk_mask(chunk, group, options.window, query),
            options,
        )  # [1, kv heads, group * tokens, head dim]
        rows = result.view(query.shape)  # [heads, tokens, head dim]
        out[here] = rows.transpose(0, 1)

    def _chunk_mask(
        self, chunk: Chunk, group: int, window: int | None, like: torch.Tensor
    ) -> torch.Tensor | None:
        if chunk.count == 1:
            return None
        key = window or 0
        if key not in chunk.masks:
            start = _window_start(chunk.position, window)
            rows = torch.arange(chunk.position, chunk.end, device=like.device)[:, None]
            columns = torch.arange(start, chunk.end, device=like.device)[None]
            mask = _added_mask(rows, columns, window, self._dtype)  # [tokens, length]
            chunk.masks[key] = mask.repeat(group, 1)  # group major, as the queries are
        return chunk.masks[key]

    def _attend_decodes(
        self,
        layer: int,
        decodes: Decodes,
        parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        out: torch.Tensor,
        options: Options,
    ) -> None:
        keys, values = self._store.view(layer, decodes.size)
        query, key, value = (part.transpose(0, 1)[decodes.tokens] for part in parts)
        keys[decodes.blocks, :, decodes.positions] = key  # [sessions, kv heads, head dim]
        values[decodes.blocks, :, decodes.positions] = value
        start, mask = self._decode_mask(decodes, options.window)
        end = start + mask.shape[-1]
        sessions, heads, head_dim = query.shape
        grouped = query.view(sessions, key.shape[1], -1, head_dim)
        if not decodes.is_dense:
            spread = query.new_zeros((decodes.high - decodes.low, *grouped.shape[1:]))
            spread[decodes.places] = grouped
            grouped = spread
        result = attend_rows(
            grouped,
            keys[decodes.low : decodes.high, :, start:end],
            values[decodes.low : decodes.high, :, start:end],
            mask,
            options,
        )  # [blocks, kv heads, group, head dim]
        if not decodes.is_dense:
            result = result[decodes.places]
        out[decodes.tokens] = result.reshape(sessions, heads, head_dim)

    def _decode_mask(self, decodes: Decodes, window: int | None) -> tuple[int, torch.Tensor]:
        key = window or 0
        if key not in decodes.masks:
            start = _window_start(int(decodes.positions.min()), window)
            positions = decodes.positions.new_zeros(decodes.high - decodes.low).fill_(start)
            positions[decodes.places] = decodes.positions
            end = int(decodes.positions.max()) + 1
            columns = torch.arange(start, end, device=positions.device)[None]
            mask = _added_mask(positions[:, None], columns, window, self._dtype)
            decodes.masks[key] = (start, mask[:, None, None])  # [blocks, 1, 1, length]
        return decodes.masks[key]


def _window_start(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position - window + 1)


def _added_mask(
    rows: torch.Tensor, columns: torch.Tensor, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """0 where the row's position sees the column's, else -inf: [rows, columns]."""
    sees = columns <= rows
    if window is not None:
        sees &= columns > rows - window
    mask = torch.zeros(sees.shape, dtype=dtype, device=rows.device)
    return mask.masked_fill_(~sees, float("-inf"))


def _runs_of(singles: Sequence[Chunk]) -> list[list[Chunk]]:
    """Group decodes by block size and nearness, so that few idle blocks lie between them."""
    by_size: dict[int, list[Chunk]] = defaultdict(list)
    for chunk in singles:
        by_size[chunk.slot.size].append(chunk)
    runs: list[list[Chunk]] = []
    for size in sorted(by_size):
        run: list[Chunk] = []
        for chunk in sorted(by_size[size], key=lambda each: each.slot.index):
            if run and (len(run) + 1) / (chunk.slot.index - run[0].slot.index + 1) < SPARSEST:
                runs.append(run)
                run = []
            run.append(chunk)
        runs.append(run)
    return runs


def _decodes_of(run: list[Chunk]) -> Decodes:
    low, high = run[0].slot.index, run[-1].slot.index + 1
    blocks = torch.tensor([chunk.slot.index for chunk in run])
    return Decodes(
        size=run[0].slot.size,
        low=low,
        high=high,
        tokens=torch.tensor([chunk.first for chunk in run]),
        blocks=blocks,
        places=blocks - low,
        positions=torch.tensor([chunk.position for chunk in run]),
        is_dense=high - low == len(run),
    )
