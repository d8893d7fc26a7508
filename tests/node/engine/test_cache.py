"""Blocks are disjoint, aligned and given back whole; sessions keep to their own rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.engine.cache import SMALLEST_BLOCK, Blocks, KVStore, block_of
from swarm.errors import EngineError, NoRoom

LIKE = torch.empty(0)


@given(st.integers(1, 1 << 20))
def test_block_is_the_least_power_that_holds_the_capacity(capacity: int) -> None:
    size = block_of(capacity)
    assert size >= capacity
    assert size == SMALLEST_BLOCK or size // 2 < capacity


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60),
)
def test_blocks_never_overlap_and_all_come_back(units: int, orders: list[tuple[bool, int]]) -> None:
    blocks = Blocks(units * SMALLEST_BLOCK)
    taken: list[tuple[int, int]] = []
    for is_take, power in orders:
        size = SMALLEST_BLOCK << power
        if is_take and (start := blocks.take(size)) is not None:
            assert start % size == 0
            assert start + size <= units * SMALLEST_BLOCK
            assert all(start + size <= s or s + n <= start for s, n in taken)
            taken.append((start, size))
        elif not is_take and taken:
            blocks.give(*taken.pop(power % len(taken)))
        assert blocks.free_tokens == units * SMALLEST_BLOCK - sum(n for _, n in taken)
    for each in taken:
        blocks.give(*each)
    left = {size: starts for size, starts in blocks.free.items() if starts}
    assert left == Blocks(units * SMALLEST_BLOCK).free


def test_store_refuses_what_has_no_room_and_takes_it_later() -> None:
    store = KVStore(range(2), 2, (4, 4), 3 * SMALLEST_BLOCK + 5, LIKE)
    assert store.free_tokens == 3 * SMALLEST_BLOCK
    store.open("a", 2 * SMALLEST_BLOCK)
    with pytest.raises(NoRoom, match="64 are free"):
        store.open("b", SMALLEST_BLOCK + 1)
    with pytest.raises(EngineError, match="open already"):
        store.open("a", 1)
    with pytest.raises(EngineError):
        store.open("c", 0)
    store.close("a")
    store.open("b", SMALLEST_BLOCK + 1)
    assert store.sessions == ["b"]


def test_closed_session_leaves_zeros() -> None:
    store = KVStore(range(1), 2, (4, 4), 4 * SMALLEST_BLOCK, LIKE)
    slot = store.open("a", 70)
    for view in store.view(0, slot.size):
        view[slot.index, :, :5] = float("nan")
    slot.length = slot.written = 5
    store.close("a")
    assert all(bool((view == 0).all()) for view in store.view(0, SMALLEST_BLOCK))


def test_rollback_only_goes_back() -> None:
    store = KVStore(range(1), 1, (1, 1), SMALLEST_BLOCK, LIKE)
    store.open("a", 10).length = 6
    store.rollback("a", 4)
    assert store.slot("a").length == 4
    for length in (5, -1):
        with pytest.raises(EngineError):
            store.rollback("a", length)
    with pytest.raises(EngineError, match="not open"):
        store.slot("b")


def test_shard_without_heads_still_counts_tokens() -> None:
    store = KVStore(range(1), 0, (4, 4), 2 * SMALLEST_BLOCK, LIKE)
    store.open("a", 1)
    assert store.free_tokens == SMALLEST_BLOCK
    store.close("a")
