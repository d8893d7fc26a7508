"""One ragged step: the tokens of many sessions in a row, prefill chunks and decodes together."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from node.engine.attention import Options
from node.engine.backend import Backend, backend_of
from node.engine.cache import KVStore, Slot

CALL_VALUES = 64_000  # a batched call costs as much as reading so many keys and values


@dataclass(slots=True)
class Chunk:
    """New rows of one slot from `position` on; `first` is the place of its first row."""

    slot: Slot
    position: int
    count: int
    first: int
    here: slice = field(init=False)  # its place in the step
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.here = slice(self.first, self.first + self.count)

    @property
    def end(self) -> int:
        """Rows that the last token of the chunk sees, itself included."""
        return self.position + self.count


@dataclass(slots=True)
class Singles:
    """Single tokens of neighbouring blocks of one size, attended as one padded batch."""

    size: int  # of a block, in tokens
    low: int  # blocks [low, high) of the view
    high: int
    here: slice | torch.Tensor  # their places in the step, by block
    blocks: torch.Tensor  # [sessions]
    positions: torch.Tensor  # [sessions]
    least: int  # of the positions, as the host knows them: asking the device would wait for it
    most: int
    is_dense: bool  # every block between the first and the last takes part
    masks: dict[int | None, tuple[int, torch.Tensor]] = field(default_factory=dict)


class Batch:
    """The plan of one step, made once and used by every layer.

    Rows keep the order of the items: ranks have unlike blocks, but must sum like rows.
    """

    def __init__(
        self,
        store: KVStore,
        chunks: Sequence[Chunk],
        like: torch.Tensor,
        backend: Backend | None = None,
    ) -> None:
        self._store = store
        self._backend = backend or backend_of(like.device)
        self._like = like  # dtype and device of masks
        self._tokens = sum(chunk.count for chunk in chunks)
        runs = _runs_of(
            [chunk for chunk in chunks if chunk.count == 1], CALL_VALUES // max(1, store.row_values)
        )
        self._parts: list[Chunk | Singles] = [chunk for chunk in chunks if chunk.count > 1]
        self._parts += [run[0] if len(run) == 1 else self._singles_of(run) for run in runs]
        self._is_simple = len(self._parts) == 1 and isinstance(self._parts[0].here, slice)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # [heads, tokens, head dim]
        key: torch.Tensor,  # [kv heads, tokens, head dim]
        value: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        """Write the step's keys and values, attend: [1, tokens, heads, head dim]."""
        if self._is_simple:
            rows = self._attend_part(layer, self._parts[0], (query, key, value), options)
            return rows.unsqueeze(0)
        out = query.new_empty((self._tokens, query.shape[0], value.shape[2]))
        for part in self._parts:
            here = part.here
            mine = (query[:, here], key[:, here], value[:, here])
            out[here] = self._attend_part(layer, part, mine, options)
        return out.unsqueeze(0)

    def _attend_part(
        self,
        layer: int,
        part: Chunk | Singles,
        parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        options: Options,
    ) -> torch.Tensor:
        if isinstance(part, Chunk):
            return self._attend_chunk(part, self._store.view(layer, part.slot.size), parts, options)
        return self._attend_singles(part, self._store.view(layer, part.size), parts, options)

    def _attend_chunk(
        self,
        chunk: Chunk,
        views: tuple[torch.Tensor, torch.Tensor],
        parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        options: Options,
    ) -> torch.Tensor:
        block, end = chunk.slot.index, chunk.end
        keys, values = views[0][block], views[1][block]  # [kv heads, size, head dim]
        keys[:, chunk.position : end] = parts[1]
        values[:, chunk.position : end] = parts[2]
        start = _window_start(chunk.position, options.window)
        sees_all = options.window is None and options.is_plain and self._backend.is_causal
        mask = None
        if chunk.count > 1 and not sees_all:
            mask = self._chunk_mask(chunk, start, options.window)
        seen = (slice(None), slice(start, end))
        return self._backend.chunk(parts[0], keys[seen], values[seen], mask, options)

    def _attend_singles(
        self,
        singles: Singles,
        views: tuple[torch.Tensor, torch.Tensor],
        parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        options: Options,
    ) -> torch.Tensor:
        query, key, value = (part.transpose(0, 1) for part in parts)  # [sessions, heads, head dim]
        at = (singles.blocks, slice(None), singles.positions)
        views[0][at] = key
        views[1][at] = value
        start, mask = self._singles_mask(singles, options.window)
        places = singles.blocks - singles.low
        heads, head_dim = query.shape[1:]
        if not singles.is_dense:
            spread = query.new_zeros((singles.high - singles.low, heads, head_dim))
            spread[places] = query
            query = spread
        seen = (slice(singles.low, singles.high), slice(None), slice(start, start + mask.shape[-1]))
        grouped = query.reshape(query.shape[0], key.shape[1], -1, head_dim)
        rows = self._backend.singles(grouped, views[0][seen], views[1][seen], mask, options)
        rows = rows.view(query.shape[0], heads, -1)
        return rows if singles.is_dense else rows[places]

    def _chunk_mask(self, chunk: Chunk, start: int, window: int | None) -> torch.Tensor:
        if window not in chunk.masks:
            rows = torch.arange(chunk.position, chunk.end, device=self._like.device)
            columns = torch.arange(start, chunk.end, device=self._like.device)
            chunk.masks[window] = self._mask(rows, columns, window)  # [tokens, length]
        return chunk.masks[window]

    def _singles_mask(self, singles: Singles, window: int | None) -> tuple[int, torch.Tensor]:
        if window not in singles.masks:
            start = _window_start(singles.least, window)
            rows = singles.positions.new_full((singles.high - singles.low,), start)
            rows[singles.blocks - singles.low] = singles.positions
            columns = torch.arange(start, singles.most + 1, device=self._like.device)
            mask = self._mask(rows, columns, window)[:, None, None]  # [blocks, 1, 1, length]
            singles.masks[window] = (start, mask)
        return singles.masks[window]

    def _mask(self, rows: torch.Tensor, columns: torch.Tensor, window: int | None) -> torch.Tensor:
        """0 where the row's position sees the column's, else -inf: [rows, columns]."""
        sees = columns[None] <= rows[:, None]
        if window is not None:
            sees &= columns[None] > rows[:, None] - window
        return self._like.new_zeros(sees.shape).masked_fill_(~sees, float("-inf"))

    def _singles_of(self, run: list[Chunk]) -> Singles:
        device = self._like.device
        return Singles(
            size=run[0].slot.size,
            low=run[0].slot.index,
            high=run[-1].slot.index + 1,
            here=_here_of([chunk.first for chunk in run], device),
            blocks=torch.tensor([chunk.slot.index for chunk in run], device=device),
            positions=torch.tensor([chunk.position for chunk in run], device=device),
            least=min(chunk.position for chunk in run),
            most=max(chunk.position for chunk in run),
            is_dense=len(run) == run[-1].slot.index + 1 - run[0].slot.index,
        )


def _here_of(places: list[int], device: torch.device) -> slice | torch.Tensor:
    if places == list(range(places[0], places[0] + len(places))):
        return slice(places[0], places[0] + len(places))
    return torch.tensor(places, device=device)


def _window_start(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position - window + 1)


def _runs_of(singles: Sequence[Chunk], call_tokens: int) -> list[list[Chunk]]:
    """Cut decodes into runs of neighbouring blocks so that padding and calls cost least."""
    by_size: dict[int, list[Chunk]] = defaultdict(list)
    for chunk in singles:
        by_size[chunk.slot.size].append(chunk)
    runs: list[list[Chunk]] = []
    for chunks in by_size.values():
        runs += _cheapest_runs(sorted(chunks, key=lambda each: each.slot.index), call_tokens)
    return runs


def _cheapest_runs(chunks: list[Chunk], call_tokens: int) -> list[list[Chunk]]:
    """Dynamic programming over the last run: it costs its blocks x its longest, plus a call."""
    places = [(chunk.slot.index, chunk.end) for chunk in chunks]
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the first n chunks, start of their last run
    for stop in range(1, len(places) + 1):
        last, longest = places[stop - 1][0], 0
        found = (1 << 62, 0)
        for start in range(stop - 1, -1, -1):
            index, end = places[start]
            longest = max(longest, end)
            padded = (last - index + 1) * longest + call_tokens
            if padded >= found[0]:
                break  # a longer run only pads more
            found = min(found, (best[start][0] + padded, start))
        best.append(found)
    runs: list[list[Chunk]] = []
    stop = len(places)
    while stop:
        runs.append(chunks[best[stop][1] : stop])
        stop = best[stop][1]
    return runs[::-1]
