"""Sessions take pages as they grow, are promised the first ones, and keep to their own rows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.engine.kv_cache.block_manager import HEADROOM_TOKENS, KVStore
from node.engine.kv_cache.block_pool import PAGE_TOKENS as PAGE
from node.engine.kv_cache.block_pool import pages_for
from swarm.errors import EngineError, NoRoom

LIKE = torch.empty(0)


def store_of(pages: int, layers: int = 1, kv_heads: int = 2) -> KVStore:
    return KVStore(range(layers), kv_heads, (4, 4), pages * PAGE, LIKE)


def fill(store: KVStore, session: str, end: int) -> None:
    """Grow a session up to `end` rows."""
    slot = store.slot(session)
    store.grow(session, slot.length, end)
    slot.length = end


def test_pages_are_taken_when_rows_come() -> None:
    store = store_of(8)
    slot = store.open("a", 3 * PAGE, known=10)
    assert slot.pages == []
    assert store.free_tokens == 5 * PAGE  # what is promised is not free
    for end, taken in ((1, 1), (PAGE, 1), (PAGE + 1, 2), (3 * PAGE, 3)):
        fill(store, "a", end)
        assert len(slot.pages) == taken
    assert store.free_tokens == 5 * PAGE
    store.close("a")
    assert store.free_tokens == 8 * PAGE


def test_a_session_is_promised_its_prompt_and_some_answer_only() -> None:
    store = store_of(16)
    slot = store.open("a", 15 * PAGE, known=PAGE)
    promised = 1 + HEADROOM_TOKENS // PAGE
    assert slot.promised == promised
    assert store.free_tokens == (16 - promised) * PAGE
    fill(store, "a", 9 * PAGE)
    assert store.free_tokens == 7 * PAGE  # grown beyond its promise


def test_two_sessions_of_much_capacity_fit_where_both_in_full_would_not() -> None:
    store = store_of(12)
    for name in "ab":
        store.open(name, 12 * PAGE)
    fill(store, "a", 8 * PAGE)
    with pytest.raises(NoRoom, match="64 tokens are wanted, 0 are free"):
        store.grow("a", 8 * PAGE, 8 * PAGE + 1)
    fill(store, "b", HEADROOM_TOKENS)  # its promise holds whatever "a" does
    store.close("a")
    fill(store, "b", 12 * PAGE)


def test_a_newcomer_leaves_what_it_is_told_to() -> None:
    store = store_of(8)
    with pytest.raises(NoRoom, match="512 are free, 320 of them for others"):
        store.open("a", 4 * PAGE, spare=5)
    store.open("a", 4 * PAGE, spare=4)


def test_growth_is_what_sessions_may_take_beyond_their_promises() -> None:
    store = store_of(20)
    store.open("a", 6 * PAGE)
    store.open("b", 9 * PAGE)
    store.open("c", 3 * PAGE)
    assert [store.growth(most) for most in (1, 4, 100)] == [2, 2 + 4, 2 + 5]
    fill(store, "a", 6 * PAGE)
    assert store.growth(100) == 5


def test_store_refuses_what_has_no_room_and_takes_it_later() -> None:
    store = KVStore(range(2), 2, (4, 4), 3 * PAGE + 5, LIKE)
    assert store.free_tokens == 3 * PAGE
    store.open("a", 2 * PAGE)
    with pytest.raises(NoRoom, match="64 are free"):
        store.open("b", PAGE + 1)
    with pytest.raises(EngineError, match="open already"):
        store.open("a", 1)
    with pytest.raises(EngineError):
        store.open("c", 0)
    store.close("a")
    store.open("b", PAGE + 1)
    assert store.sessions == ["b"]


def test_a_refused_growth_changes_nothing() -> None:
    store = store_of(6)
    store.open("b", PAGE)
    slot = store.open("a", 6 * PAGE)
    fill(store, "a", 5 * PAGE)
    before = list(slot.pages), slot.length, store.free_tokens
    with pytest.raises(NoRoom):
        store.grow("a", 5 * PAGE, 6 * PAGE)
    assert (slot.pages, slot.length, store.free_tokens) == before


def test_rows_of_a_lone_session_lie_in_a_row() -> None:
    store = store_of(8)
    slot = store.open("a", 4 * PAGE)
    other = store.open("b", 4 * PAGE)
    for end in (1, 70, 200, 256):
        fill(store, "a", end)
        fill(store, "b", end)
    assert slot.is_straight
    assert other.is_straight
    assert slot.straight(3, 200) == slice(3, 200)
    assert list(other.rows(5, 200)) == list(range(256 + 5, 256 + 200))


def test_rows_that_do_not_lie_in_a_row_are_found_all_the_same() -> None:
    store = store_of(6)
    for name in "abc":
        store.open(name, 2 * PAGE)
        fill(store, name, 2 * PAGE)
    store.close("a")
    store.close("c")
    slot = store.open("d", 4 * PAGE)
    fill(store, "d", 4 * PAGE)
    assert slot.pages == [0, 1, 4, 5]
    assert not slot.is_straight
    assert list(slot.rows(PAGE, 3 * PAGE)) == [*range(PAGE, 2 * PAGE), *range(4 * PAGE, 5 * PAGE)]


def test_closed_session_leaves_zeros() -> None:
    store = store_of(4)
    slot = store.open("a", 70)
    fill(store, "a", 70)
    for arena in store.arena(0):
        arena[:, slot.rows(0, 70)] = float("nan")
    store.close("a")
    assert all(bool((arena == 0).all()) for arena in store.arena(0))


def test_keys_and_values_are_seen_as_arrays_in_place() -> None:
    store = store_of(2, layers=2)
    store.arena(1)[1][1, 5] = 3.0
    keys, values = store.flat(1)
    assert keys.shape == values.shape == (2, 3 * PAGE, 4)  # an odd number of pages
    assert bool((values[1, 5] == 3).all())
    assert np.count_nonzero(store.flat(0)[1]) == 0


def test_rollback_only_goes_back() -> None:
    store = KVStore(range(1), 1, (1, 1), PAGE, LIKE)
    store.open("a", 10).length = 6
    store.rollback("a", 4)
    assert store.slot("a").length == 4
    for length in (5, -1):
        with pytest.raises(EngineError):
            store.rollback("a", length)
    with pytest.raises(EngineError, match="not open"):
        store.slot("b")


def test_shard_without_heads_still_counts_tokens() -> None:
    store = store_of(2, kv_heads=0)
    store.open("a", 1)
    fill(store, "a", 1)
    assert store.free_tokens == PAGE
    store.close("a")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "grow", "grow", "close"]),
            st.integers(0, 4),
            st.integers(1, 9 * PAGE),
        ),
        max_size=50,
    )
)
def test_sessions_never_share_pages_unasked_and_promises_hold(
    orders: list[tuple[str, int, int]],
) -> None:
    store = store_of(9)
    for kind, number, tokens in orders:
        name = f"s{number}"
        is_open = name in store.sessions
        try:
            if kind == "open" and not is_open:
                store.open(name, tokens, known=tokens // 3)
            elif kind == "grow" and is_open:
                slot = store.slot(name)
                fill(store, name, min(slot.capacity, max(tokens, slot.length)))
            elif kind == "close":
                store.close(name)
        except NoRoom:
            assert kind == "open" or pages_for(tokens) > store.slot(name).promised
        slots = [store.slot(each) for each in store.sessions]
        pages = [page for slot in slots for page in slot.pages]
        assert len(set(pages)) == len(pages)
        held = sum(max(slot.promised, len(slot.pages)) for slot in slots)
        assert store.free_tokens == (9 - held) * PAGE >= 0
        assert all(len(slot.pages) >= pages_for(slot.length) for slot in slots)
