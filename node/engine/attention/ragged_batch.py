"""One ragged step: the tokens of many sessions in a row, prefill chunks and decodes together."""

from collections.abc import Sequence

import numpy as np
import torch

from node.engine.attention.backends import Backend, Parts, backend_of
from node.engine.attention.decode_batch import DecodeBatch, TokenSpan, mask_of
from node.engine.attention.interface import Options
from node.engine.kv_cache.arena import Arenas, KVStore


class RaggedBatch:
    """The plan of one step, made once and used by every layer.

    Rows keep the order of the items, whatever parts they are attended in: ranks must sum like rows.
    """

    def __init__(
        self,
        store: KVStore,
        spans: Sequence[TokenSpan],
        like: torch.Tensor,
        backend: Backend | None = None,
    ) -> None:
        self._store = store
        self._backend = backend or backend_of(like.device, like.dtype)
        self._like = like  # dtype and device of masks
        self._tokens = sum(span.count for span in spans)
        self._rows = _rows_of(spans, like.device)
        self._parts: list[TokenSpan | DecodeBatch] = [span for span in spans if span.count > 1]
        decodes = [span for span in spans if span.count == 1]
        self._parts += [DecodeBatch(store, decodes, like)] if decodes else []
        self._is_simple = len(self._parts) == 1 and isinstance(self._parts[0].step_rows, slice)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # [heads, tokens, head dim]
        key: torch.Tensor,  # [kv heads, tokens, head dim]
        value: torch.Tensor,
        options: Options,
    ) -> torch.Tensor:
        """Write the step's keys and values, attend: [1, tokens, heads, head dim]."""
        arenas = self._store.arena.layer(layer)
        arenas[0][:, self._rows] = key
        arenas[1][:, self._rows] = value
        if self._is_simple:
            parts = query, key, value
            rows = self._attend_part(self._parts[0], layer, arenas, parts, options)
            return rows.unsqueeze(0)
        out = query.new_empty((self._tokens, query.shape[0], value.shape[2]))
        for part in self._parts:
            step_rows = part.step_rows
            mine = (query[:, step_rows], key[:, step_rows], value[:, step_rows])
            out[step_rows] = self._attend_part(part, layer, arenas, mine, options)
        return out.unsqueeze(0)

    def _attend_part(
        self,
        part: TokenSpan | DecodeBatch,
        layer: int,
        arenas: Arenas,
        parts: Parts,
        options: Options,
    ) -> torch.Tensor:
        if isinstance(part, DecodeBatch):
            return self._backend.decode(part, layer, arenas, parts, options)
        return self._attend_prefill(part, arenas, parts[0], options)

    def _attend_prefill(
        self, span: TokenSpan, arenas: Arenas, query: torch.Tensor, options: Options
    ) -> torch.Tensor:
        start = 0 if options.window is None else max(0, span.position - options.window + 1)
        sees_all = options.window is None and options.is_plain and self._backend.is_causal
        mask = None if sees_all else self._prefill_mask(span, start, options.window)
        rows = span.rows(start, self._like.device)
        keys, values = (arena[:, rows] for arena in arenas)  # [kv heads, length, head dim]
        return self._backend.prefill(query, keys, values, mask, options)

    def _prefill_mask(self, span: TokenSpan, start: int, window: int | None) -> torch.Tensor:
        if window not in span.masks:
            rows = torch.arange(span.position, span.end, device=self._like.device)
            columns = torch.arange(start, span.end, device=self._like.device)
            span.masks[window] = mask_of(rows, columns, window, self._like)  # [tokens, length]
        return span.masks[window]


def _rows_of(spans: Sequence[TokenSpan], device: torch.device) -> slice | torch.Tensor:
    """Where the step's keys and values are written in the arena."""
    if len(spans) == 1 and spans[0].table.is_contiguous:
        return spans[0].table.contiguous(spans[0].position, spans[0].end)
    rows = [span.table.slot_mapping(span.position, span.end) for span in spans]
    return torch.from_numpy(np.concatenate(rows)).to(device)
