"""Flex attention is told of just the blocks that a session sees; compiled, it reads only those."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import flex_attention

from node.engine.attention import flex_paged
from node.engine.attention.backends import attend_gathered, attend_paged
from node.engine.attention.decode_batch import DecodeBatch, TokenSpan
from node.engine.attention.interface import Options
from node.engine.kv_cache.arena import KVStore
from node.engine.kv_cache.block_pool import BLOCK_TOKENS as BLOCK

HEADS, KV_HEADS, DIM = 8, 4, 32
PAGES = 31


def decoding(ends: list[int]) -> tuple[KVStore, list[TokenSpan]]:
    """Sessions with random rows, each about to attend its last one."""
    store = KVStore(range(1), KV_HEADS, (DIM, DIM), PAGES * BLOCK, torch.empty(0))
    spans = []
    for number, end in enumerate(ends):
        table = store.manager.open(f"s{number}", end, known=end)
        store.manager.grow(table.session, 0, end)
        spans.append(TokenSpan(table, end - 1, 1, number))
    return store, spans


@given(
    st.lists(st.integers(1, 6 * BLOCK), min_size=1, max_size=5),
    st.none() | st.integers(1, 5 * BLOCK),
)
def test_listed_blocks_are_those_that_hold_what_is_seen(
    ends: list[int], window: int | None
) -> None:
    store, spans = decoding(ends)
    bucket = 4 if len(ends) <= 4 else 16
    batch = DecodeBatch(store, spans, torch.empty(0))
    mask = flex_paged._block_mask(batch, bucket, store.arena.layer(0), Options(window=window))
    begun = TokenSpan(spans[0].table, 0, 1, 0)  # what the rest is filled with
    for number, span in enumerate([*spans, *[begun] * (bucket - len(spans))]):
        first = 0 if window is None else max(0, span.end - window)
        seen = range(first, span.end)
        blocks = {span.table.blocks[row // BLOCK] for row in seen}
        full = {
            block
            for place, block in enumerate(span.table.blocks)
            if place * BLOCK in seen and place * BLOCK + BLOCK - 1 in seen
        }
        edges = listed(mask.kv_num_blocks, mask.kv_indices, number)
        between = listed(mask.full_kv_num_blocks, mask.full_kv_indices, number)
        assert len(edges) + len(between) == len(blocks)
        assert {*edges, *between} == blocks
        assert set(between) <= full


def listed(counts: torch.Tensor | None, indices: torch.Tensor | None, session: int) -> list[int]:
    assert counts is not None
    assert indices is not None
    blocks: list[int] = indices[session, 0, 0, : int(counts[session, 0, 0])].tolist()
    return blocks


@pytest.fixture
def _compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
    compiled = torch.compile(flex_attention.flex_attention, dynamic=False, fullgraph=True)
    monkeypatch.setattr(flex_paged, "_flex", lambda device: compiled)
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for CPUs with g++")
@pytest.mark.parametrize("options", [Options(), Options(window=70), Options(softcap=3.0)])
@pytest.mark.usefixtures("_compiled")
def test_compiled_for_this_cpu_it_reads_the_same_rows_and_no_others(options: Options) -> None:
    store, spans = decoding([5, 300, 64, 129, 200])
    for arena in store.arena.layer(0):
        arena.fill_(torch.nan)  # blocks that are not listed must not be read
        for span in spans:
            block_end = len(span.table.blocks) * BLOCK
            arena[:, span.table.slot_mapping(0, block_end)] = torch.randn(KV_HEADS, block_end, DIM)
    for some in (spans, spans[:4], spans[1:2]):
        query, unused = torch.randn(HEADS, len(some), DIM), torch.empty(0)
        with torch.inference_mode():
            batch = DecodeBatch(store, some, torch.empty(0))
            found = flex_paged.attend(batch, store.arena.layer(0), query, options)
            parts = (query, unused, unused)
            expected = attend_gathered(batch, 0, store.arena.layer(0), parts, options)
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_heads_too_narrow_for_the_compiled_kernel_are_attended_portably(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flex_paged, "is_compiled", lambda device: True)
    assert flex_paged.takes(torch.empty(HEADS, 1, 16))
    assert not flex_paged.takes(torch.empty(HEADS, 1, 12))
    monkeypatch.setattr(
        flex_paged, "attend", lambda *given: pytest.fail("the kernel refuses these")
    )
    store = KVStore(range(1), KV_HEADS, (12, 12), PAGES * BLOCK, torch.empty(0))
    table = store.manager.open("narrow", 4, known=4)
    store.manager.grow("narrow", 0, 4)
    batch = DecodeBatch(store, [TokenSpan(table, 3, 1, 0)], torch.empty(0))
    row = torch.ones(KV_HEADS, 1, 12)
    parts = (torch.ones(HEADS, 1, 12), row, row)
    assert attend_paged(batch, 0, store.arena.layer(0), parts, Options()).shape == (1, HEADS, 12)


def test_a_failed_compilation_is_told_in_one_short_line(caplog: pytest.LogCaptureFixture) -> None:
    flex_paged.give_up(RuntimeError("not here\n" + "  args: TensorBox(...)\n" * 1000))
    try:
        (line,) = caplog.messages
        assert "not here" in line
        assert "\n" not in line
        assert len(line) < 400
        assert flex_paged.is_broken()
    finally:
        flex_paged.start_afresh()
