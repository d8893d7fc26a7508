"""Attention of a ragged step equals attention of each session alone, wherever its blocks lie."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.exc import TorchDynamoException

from node.engine.attention import flex_paged
from node.engine.attention.backends import BACKENDS, Backend
from node.engine.attention.decode_batch import DecodeBatch, TokenSpan
from node.engine.attention.interface import Options
from node.engine.attention.ragged_batch import RaggedBatch
from node.engine.kv_cache.arena import KVStore
from node.engine.kv_cache.block_pool import BLOCK_TOKENS
from node.engine.kv_cache.block_table import BlockTable

HEADS, KV_HEADS, DIM = 6, 3, 4
ROWS = 200  # per session
OPTIONS: dict[str, Any] = {
    "plain": {},
    "window": {"window": 9},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks": torch.linspace(-1, 2, HEADS)},
    "all": {"window": 5, "softcap": 2.0, "sinks": torch.linspace(-1, 2, HEADS), "scaling": 0.3},
}


def attend_alone(rows: list[torch.Tensor], position: int, options: Options) -> torch.Tensor:
    """The plainest attention over one session: [tokens, heads, dim]."""
    query, key, value = rows
    key, value = (each.repeat_interleave(HEADS // KV_HEADS, 0) for each in (key, value))
    scale = DIM**-0.5 if options.scaling is None else options.scaling
    scores = query[:, position:] @ key.transpose(1, 2) * scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    seen = torch.arange(key.shape[1])[None] <= torch.arange(position, key.shape[1])[:, None]
    if options.window is not None:
        distance = torch.arange(position, key.shape[1])[:, None] - torch.arange(key.shape[1])
        seen = (distance >= 0) & (distance < options.window)
    scores = scores.masked_fill(~seen, float("-inf"))
    if options.sinks is not None:
        column = options.sinks.view(-1, 1, 1).expand(-1, scores.shape[1], 1)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1)[..., : key.shape[1]]
    return (weights @ value).transpose(0, 1)


@pytest.mark.parametrize("how", BACKENDS)
@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=15, deadline=None)
@given(
    capacities=st.lists(st.sampled_from([40, 64, 100, 200]), min_size=2, max_size=7),
    steps=st.lists(
        st.lists(st.tuples(st.integers(0, 6), st.sampled_from([1, 1, 1, 2, 7, 70])), max_size=7),
        max_size=8,
    ),
    is_scattered=st.booleans(),
)
def test_ragged_step_equals_each_session_alone(
    name: str,
    how: str,
    capacities: list[int],
    steps: list[list[tuple[int, int]]],
    is_scattered: bool,
) -> None:
    options = Options(**OPTIONS[name])
    store = KVStore(range(1), KV_HEADS, (DIM, DIM), 4096, torch.empty(0))
    for arena in store.arena.layer(0):  # what nobody wrote must never be read
        arena.fill_(1e6 if how == "paged" else torch.nan)  # but masked, where not compiled
    tables = [store.manager.open(f"s{n}", capacity) for n, capacity in enumerate(capacities)]
    for table in tables if is_scattered else ():
        table.earmarked = table.earmarked[::-1]
    torch.manual_seed(0)
    rows = [[torch.randn(h, ROWS, DIM) for h in (HEADS, KV_HEADS, KV_HEADS)] for _ in tables]
    for step in steps:
        counts = {n % len(tables): count for n, count in step}
        fitting = {n: c for n, c in counts.items() if tables[n].length + c <= tables[n].capacity}
        if fitting:
            check_step(store, tables, rows, fitting, (options, BACKENDS[how]))


def check_step(
    store: KVStore,
    tables: list[BlockTable],
    rows: list[list[torch.Tensor]],
    counts: dict[int, int],
    how: tuple[Options, Backend],
) -> None:
    options, chosen = how
    for n, count in counts.items():
        before = len(tables[n].blocks)
        store.manager.grow(tables[n].session, tables[n].length, tables[n].length + count)
        for block in tables[n].blocks[before:]:  # as a store leaves free blocks
            for arena in store.arena.layer(0):
                arena[:, block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS] = 0
    firsts = [0, *itertools.accumulate(counts.values())]
    spans = [
        TokenSpan(tables[n], tables[n].length, count, first)
        for (n, count), first in zip(counts.items(), firsts, strict=False)
    ]
    packed = [
        torch.cat(
            [rows[n][k][:, c.position : c.end] for n, c in zip(counts, spans, strict=True)], 1
        )
        for k in range(3)
    ]
    query, key, value = packed
    out = RaggedBatch(store, spans, torch.empty(0), chosen).attend(0, query, key, value, options)[0]
    for n, span in zip(counts, spans, strict=True):
        expected = attend_alone([each[:, : span.end] for each in rows[n]], span.position, options)
        torch.testing.assert_close(out[span.step_rows], expected, atol=1e-5, rtol=1e-5)
        tables[n].length = span.end


def test_sessions_of_unlike_lengths_are_padded_apart_where_padding_costs() -> None:
    store = KVStore(range(1), KV_HEADS, (DIM, DIM), 4096, torch.empty(0))
    positions = [3, 60, 70, 900, 950]
    tables = [store.manager.open(f"s{n}", 1024, known=0) for n in range(3)]
    for table in tables:
        store.manager.grow(table.session, 0, table.capacity)
    spans = [TokenSpan(tables[n % 3], at, 1, n) for n, at in enumerate(positions)]
    (whole,) = RaggedBatch(store, spans, torch.empty(0), BACKENDS["padded"])._parts
    assert isinstance(whole, DecodeBatch)
    assert whole.step_rows == slice(0, 5)
    assert [(part.most, places) for part, places in whole.length_groups] == [
        (60, [0, 1]),
        (70, [2]),
        (950, [3, 4]),
    ]


def test_where_flex_attention_fails_its_steps_are_computed_portably(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TorchDynamoException("no compiler")

    monkeypatch.setattr(flex_paged, "_flex", lambda device: refuse)
    monkeypatch.setattr(flex_paged, "_failures", [])
    store = KVStore(range(1), KV_HEADS, (DIM, DIM), 1024, torch.empty(0))
    tables = [store.manager.open(f"s{n}", 100) for n in range(2)]
    torch.manual_seed(0)
    rows = [[torch.randn(h, ROWS, DIM) for h in (HEADS, KV_HEADS, KV_HEADS)] for _ in tables]
    for _ in range(3):
        check_step(store, tables, rows, {0: 1, 1: 1}, (Options(), BACKENDS["paged"]))
    (own,) = [each.message for each in caplog.records if each.name == flex_paged.__name__]
    assert own == "flex attention cannot be compiled here: no compiler"
