"""One ragged step: the tokens of many sessions in a row, prefill chunks and decodes together."""

from collections.abc import Sequence

import numpy as np
import torch

from node.engine.attention.backends import Backend, Parts, backend_of
from node.engine.attention.decode_batch import Chunk, Singles, mask_of
from node.engine.attention.interface import Options
from node.engine.kv_cache.block_manager import Arenas, KVStore


class Batch:
    """The plan of one step, made once and used by every layer.

    Rows keep the order of the items, whatever parts they are attended in: ranks must sum like rows.
    """

    def __init__(
        self,
        store: KVStore,
        chunks: Sequence[Chunk],
        like: torch.Tensor,
        backend: Backend | None = None,
    ) -> None:
        self._store = store
        self._backend = backend or backend_of(like.device, like.dtype)
        self._like = like  # dtype and device of masks
        self._tokens = sum(chunk.count for chunk in chunks)
        self._rows = _rows_of(chunks, like.device)
        self._parts: list[Chunk | Singles] = [chunk for chunk in chunks if chunk.count > 1]
        singles = [chunk for chunk in chunks if chunk.count == 1]
        self._parts += [Singles(store, singles, like)] if singles else []
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
        arenas = self._store.arena(layer)
        arenas[0][:, self._rows] = key
        arenas[1][:, self._rows] = value
        if self._is_simple:
            parts = query, key, value
            rows = self._attend_part(self._parts[0], layer, arenas, parts, options)
            return rows.unsqueeze(0)
        out = query.new_empty((self._tokens, query.shape[0], value.shape[2]))
        for part in self._parts:
            here = part.here
            mine = (query[:, here], key[:, here], value[:, here])
            out[here] = self._attend_part(part, layer, arenas, mine, options)
        return out.unsqueeze(0)

    def _attend_part(
        self, part: Chunk | Singles, layer: int, arenas: Arenas, parts: Parts, options: Options
    ) -> torch.Tensor:
        if isinstance(part, Singles):
            return self._backend.singles(part, layer, arenas, parts, options)
        return self._attend_chunk(part, arenas, parts[0], options)

    def _attend_chunk(
        self, chunk: Chunk, arenas: Arenas, query: torch.Tensor, options: Options
    ) -> torch.Tensor:
        start = 0 if options.window is None else max(0, chunk.position - options.window + 1)
        sees_all = options.window is None and options.is_plain and self._backend.is_causal
        mask = None if sees_all else self._chunk_mask(chunk, start, options.window)
        rows = chunk.rows(start, self._like.device)
        keys, values = (arena[:, rows] for arena in arenas)  # [kv heads, length, head dim]
        return self._backend.chunk(query, keys, values, mask, options)

    def _chunk_mask(self, chunk: Chunk, start: int, window: int | None) -> torch.Tensor:
        if window not in chunk.masks:
            rows = torch.arange(chunk.position, chunk.end, device=self._like.device)
            columns = torch.arange(start, chunk.end, device=self._like.device)
            chunk.masks[window] = mask_of(rows, columns, window, self._like)  # [tokens, length]
        return chunk.masks[window]


def _rows_of(chunks: Sequence[Chunk], device: torch.device) -> slice | torch.Tensor:
    """Where the step's keys and values are written in the arena."""
    if len(chunks) == 1 and chunks[0].table.is_contiguous:
        return chunks[0].table.contiguous(chunks[0].position, chunks[0].end)
    rows = [chunk.table.slot_mapping(chunk.position, chunk.end) for chunk in chunks]
    return torch.from_numpy(np.concatenate(rows)).to(device)
