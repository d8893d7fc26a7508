"""Attention of a ragged step equals attention of each session alone; runs are cut cheapest."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.engine.attention import Options
from node.engine.backend import BACKENDS, Backend
from node.engine.batch import Batch, Chunk, _cheapest_runs
from node.engine.cache import KVStore, Slot

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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=15, deadline=None)
@given(
    capacities=st.lists(st.sampled_from([40, 64, 100, 200]), min_size=2, max_size=7),
    steps=st.lists(
        st.lists(st.tuples(st.integers(0, 6), st.sampled_from([1, 1, 1, 2, 7])), max_size=7),
        max_size=8,
    ),
)
def test_ragged_step_equals_each_session_alone(
    name: str, backend: str, capacities: list[int], steps: list[list[tuple[int, int]]]
) -> None:
    options = Options(**OPTIONS[name])
    store = KVStore(range(1), KV_HEADS, (DIM, DIM), 4096, torch.empty(0))
    slots = [store.open(f"s{n}", capacity) for n, capacity in enumerate(capacities)]
    torch.manual_seed(0)
    rows = [[torch.randn(h, ROWS, DIM) for h in (HEADS, KV_HEADS, KV_HEADS)] for _ in slots]
    for step in steps:
        counts = {n % len(slots): count for n, count in step}
        fitting = {n: c for n, c in counts.items() if slots[n].length + c <= slots[n].capacity}
        if fitting:
            check_step(store, slots, rows, fitting, (options, BACKENDS[backend]))


def check_step(
    store: KVStore,
    slots: list[Slot],
    rows: list[list[torch.Tensor]],
    counts: dict[int, int],
    how: tuple[Options, Backend],
) -> None:
    options, backend = how
    firsts = [0, *itertools.accumulate(counts.values())]
    chunks = [
        Chunk(slots[n], slots[n].length, count, first)
        for (n, count), first in zip(counts.items(), firsts, strict=False)
    ]
    packed = [
        torch.cat(
            [rows[n][k][:, c.position : c.end] for n, c in zip(counts, chunks, strict=True)], 1
        )
        for k in range(3)
    ]
    query, key, value = packed
    out = Batch(store, chunks, torch.empty(0), backend).attend(0, query, key, value, options)[0]
    for n, chunk in zip(counts, chunks, strict=True):
        expected = attend_alone([each[:, : chunk.end] for each in rows[n]], chunk.position, options)
        torch.testing.assert_close(out[chunk.here], expected, atol=1e-5, rtol=1e-5)
        slots[n].length = chunk.end


def cost_of(runs: list[list[Chunk]], call_tokens: int) -> int:
    return sum(
        (run[-1].slot.index - run[0].slot.index + 1) * max(c.end for c in run) + call_tokens
        for run in runs
    )


@given(
    st.lists(st.integers(0, 63), min_size=1, max_size=9),
    st.sets(st.integers(0, 30), min_size=9, max_size=9),
    st.integers(0, 200),
)
def test_runs_cost_no_more_than_any_other_cut(
    positions: list[int], blocks: set[int], call_tokens: int
) -> None:
    chunks = [
        Chunk(Slot(f"s{block}", block * 64, 64, 64), position, 1, 0)
        for position, block in zip(positions, sorted(blocks), strict=False)
    ]
    runs = _cheapest_runs(chunks, call_tokens)
    assert [chunk for run in runs for chunk in run] == chunks
    cuts = itertools.product([False, True], repeat=len(chunks) - 1)
    assert cost_of(runs, call_tokens) == min(
        cost_of(split_at(chunks, cut), call_tokens) for cut in cuts
    )


def split_at(chunks: list[Chunk], cuts: tuple[bool, ...]) -> list[list[Chunk]]:
    runs = [[chunks[0]]]
    for chunk, is_cut in zip(chunks[1:], cuts, strict=True):
        if is_cut:
            runs.append([chunk])
        else:
            runs[-1].append(chunk)
    return runs
