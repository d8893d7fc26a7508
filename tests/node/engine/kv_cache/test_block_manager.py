"""Sessions take blocks as they grow, are reserved the first ones, and keep to their own rows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.engine.kv_cache.arena import KVStore
from node.engine.kv_cache.block_manager import HEADROOM_TOKENS
from node.engine.kv_cache.block_pool import BLOCK_TOKENS as BLOCK
from node.engine.kv_cache.block_pool import blocks_for
from swarm.errors import EngineError, NoRoom

LIKE = torch.empty(0)


def store_of(blocks: int, layers: int = 1, kv_heads: int = 2) -> KVStore:
    return KVStore(range(layers), kv_heads, (4, 4), blocks * BLOCK, LIKE)


def fill(store: KVStore, session: str, end: int) -> None:
    """Grow a session up to `end` rows."""
    table = store.manager.table(session)
    store.manager.grow(session, table.length, end)
    table.length = end


def test_blocks_are_taken_when_rows_come() -> None:
    store = store_of(8)
    table = store.manager.open("a", 3 * BLOCK, known=10)
    assert table.blocks == []
    assert store.manager.free_tokens == 5 * BLOCK  # what is reserved is not free
    for end, taken in ((1, 1), (BLOCK, 1), (BLOCK + 1, 2), (3 * BLOCK, 3)):
        fill(store, "a", end)
        assert len(table.blocks) == taken
    assert store.manager.free_tokens == 5 * BLOCK
    store.manager.close("a")
    assert store.manager.free_tokens == 8 * BLOCK


def test_a_session_is_reserved_its_prompt_and_some_answer_only() -> None:
    store = store_of(16)
    table = store.manager.open("a", 15 * BLOCK, known=BLOCK)
    reserved = 1 + HEADROOM_TOKENS // BLOCK
    assert table.reserved == reserved
    assert store.manager.free_tokens == (16 - reserved) * BLOCK
    fill(store, "a", 9 * BLOCK)
    assert store.manager.free_tokens == 7 * BLOCK  # grown beyond its reservation


def test_two_sessions_of_much_capacity_fit_where_both_in_full_would_not() -> None:
    store = store_of(12)
    for name in "ab":
        store.manager.open(name, 12 * BLOCK)
    fill(store, "a", 8 * BLOCK)
    with pytest.raises(NoRoom, match="64 tokens are wanted, 0 are free"):
        store.manager.grow("a", 8 * BLOCK, 8 * BLOCK + 1)
    fill(store, "b", HEADROOM_TOKENS)  # its reservation holds whatever "a" does
    store.manager.close("a")
    fill(store, "b", 12 * BLOCK)


def test_a_newcomer_leaves_what_it_is_told_to() -> None:
    store = store_of(8)
    with pytest.raises(NoRoom, match="512 are free, 320 of them for others"):
        store.manager.open("a", 4 * BLOCK, spare=5)
    store.manager.open("a", 4 * BLOCK, spare=4)


def test_growth_is_what_sessions_may_take_beyond_their_reservations() -> None:
    store = store_of(20)
    store.manager.open("a", 6 * BLOCK)
    store.manager.open("b", 9 * BLOCK)
    store.manager.open("c", 3 * BLOCK)
    assert [store.manager.growth(most) for most in (1, 4, 100)] == [2, 2 + 4, 2 + 5]
    fill(store, "a", 6 * BLOCK)
    assert store.manager.growth(100) == 5


def test_store_refuses_what_has_no_room_and_takes_it_later() -> None:
    store = KVStore(range(2), 2, (4, 4), 3 * BLOCK + 5, LIKE)
    assert store.manager.free_tokens == 3 * BLOCK
    store.manager.open("a", 2 * BLOCK)
    with pytest.raises(NoRoom, match="64 are free"):
        store.manager.open("b", BLOCK + 1)
    with pytest.raises(EngineError, match="open already"):
        store.manager.open("a", 1)
    with pytest.raises(EngineError):
        store.manager.open("c", 0)
    store.manager.close("a")
    store.manager.open("b", BLOCK + 1)
    assert store.manager.sessions == ["b"]


def test_a_refused_growth_changes_nothing() -> None:
    store = store_of(6)
    store.manager.open("b", BLOCK)
    table = store.manager.open("a", 6 * BLOCK)
    fill(store, "a", 5 * BLOCK)
    before = list(table.blocks), table.length, store.manager.free_tokens
    with pytest.raises(NoRoom):
        store.manager.grow("a", 5 * BLOCK, 6 * BLOCK)
    assert (table.blocks, table.length, store.manager.free_tokens) == before


def test_rows_of_a_lone_session_lie_in_a_row() -> None:
    store = store_of(8)
    table = store.manager.open("a", 4 * BLOCK)
    other = store.manager.open("b", 4 * BLOCK)
    for end in (1, 70, 200, 256):
        fill(store, "a", end)
        fill(store, "b", end)
    assert table.is_contiguous
    assert other.is_contiguous
    assert table.contiguous(3, 200) == slice(3, 200)
    assert list(other.slot_mapping(5, 200)) == list(range(256 + 5, 256 + 200))


def test_rows_that_do_not_lie_in_a_row_are_found_all_the_same() -> None:
    store = store_of(6)
    for name in "abc":
        store.manager.open(name, 2 * BLOCK)
        fill(store, name, 2 * BLOCK)
    store.manager.close("a")
    store.manager.close("c")
    table = store.manager.open("d", 4 * BLOCK)
    fill(store, "d", 4 * BLOCK)
    assert table.blocks == [0, 1, 4, 5]
    assert not table.is_contiguous
    assert list(table.slot_mapping(BLOCK, 3 * BLOCK)) == [
        *range(BLOCK, 2 * BLOCK),
        *range(4 * BLOCK, 5 * BLOCK),
    ]


def test_closed_session_leaves_zeros() -> None:
    store = store_of(4)
    table = store.manager.open("a", 70)
    fill(store, "a", 70)
    for arena in store.arena.layer(0):
        arena[:, table.slot_mapping(0, 70)] = float("nan")
    store.manager.close("a")
    assert all(bool((arena == 0).all()) for arena in store.arena.layer(0))


def test_keys_and_values_are_seen_as_arrays_in_place() -> None:
    store = store_of(2, layers=2)
    store.arena.layer(1)[1][1, 5] = 3.0
    keys, values = store.arena.flat(1)
    assert keys.shape == values.shape == (2, 3 * BLOCK, 4)  # an odd number of blocks
    assert bool((values[1, 5] == 3).all())
    assert np.count_nonzero(store.arena.flat(0)[1]) == 0


def test_rollback_only_goes_back() -> None:
    store = KVStore(range(1), 1, (1, 1), BLOCK, LIKE)
    store.manager.open("a", 10).length = 6
    store.manager.rollback("a", 4)
    assert store.manager.table("a").length == 4
    for length in (5, -1):
        with pytest.raises(EngineError):
            store.manager.rollback("a", length)
    with pytest.raises(EngineError, match="not open"):
        store.manager.table("b")


def test_shard_without_heads_still_counts_tokens() -> None:
    store = store_of(2, kv_heads=0)
    store.manager.open("a", 1)
    fill(store, "a", 1)
    assert store.manager.free_tokens == BLOCK
    store.manager.close("a")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "grow", "grow", "close"]),
            st.integers(0, 4),
            st.integers(1, 9 * BLOCK),
        ),
        max_size=50,
    )
)
def test_sessions_never_share_blocks_unasked_and_reservations_hold(
    orders: list[tuple[str, int, int]],
) -> None:
    store = store_of(9)
    for kind, number, tokens in orders:
        name = f"s{number}"
        is_open = name in store.manager.sessions
        try:
            if kind == "open" and not is_open:
                store.manager.open(name, tokens, known=tokens // 3)
            elif kind == "grow" and is_open:
                table = store.manager.table(name)
                fill(store, name, min(table.capacity, max(tokens, table.length)))
            elif kind == "close":
                store.manager.close(name)
        except NoRoom:
            assert kind == "open" or blocks_for(tokens) > store.manager.table(name).reserved
        tables = [store.manager.table(each) for each in store.manager.sessions]
        blocks = [block for table in tables for block in table.blocks]
        assert len(set(blocks)) == len(blocks)
        held = sum(max(table.reserved, len(table.blocks)) for table in tables)
        assert store.manager.free_tokens == (9 - held) * BLOCK >= 0
        assert all(len(table.blocks) >= blocks_for(table.length) for table in tables)
