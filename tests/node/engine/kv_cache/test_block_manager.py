"""Sessions take blocks as they grow, are reserved the first ones, and keep to their own rows."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.engine.kv_cache.arena import KVStore
from node.engine.kv_cache.block_manager import HEADROOM_TOKENS, BlockManager
from node.engine.kv_cache.block_pool import BLOCK_TOKENS as BLOCK
from node.engine.kv_cache.block_pool import blocks_for
from swarm.errors import EngineError, NoRoom


class NoRows:
    """Where no rows lie: what is copied and cleared does not matter here."""

    def copy(self, source: int, target: int, rows: int) -> None:
        """Copy nothing."""

    def clear(self, blocks: Sequence[int]) -> None:
        """Clear nothing."""


def manager_of(blocks: int) -> BlockManager:
    return BlockManager(blocks, NoRows())


def fill(manager: BlockManager, session: str, end: int) -> None:
    """Grow a session up to `end` rows."""
    table = manager.table(session)
    manager.grow(session, table.length, end)
    table.length = end


def test_blocks_are_taken_when_rows_come() -> None:
    manager = manager_of(8)
    table = manager.open("a", 3 * BLOCK, known=10)
    assert table.blocks == []
    assert manager.free_tokens == 5 * BLOCK  # what is reserved is not free
    for end, taken in ((1, 1), (BLOCK, 1), (BLOCK + 1, 2), (3 * BLOCK, 3)):
        fill(manager, "a", end)
        assert len(table.blocks) == taken
    assert manager.free_tokens == 5 * BLOCK
    manager.close("a")
    assert manager.free_tokens == 8 * BLOCK


def test_a_session_is_reserved_its_prompt_and_some_answer_only() -> None:
    manager = manager_of(16)
    table = manager.open("a", 15 * BLOCK, known=BLOCK)
    reserved = 1 + HEADROOM_TOKENS // BLOCK
    assert table.reserved == reserved
    assert manager.free_tokens == (16 - reserved) * BLOCK
    fill(manager, "a", 9 * BLOCK)
    assert manager.free_tokens == 7 * BLOCK  # grown beyond its reservation


def test_two_sessions_of_much_capacity_fit_where_both_in_full_would_not() -> None:
    manager = manager_of(12)
    for name in "ab":
        manager.open(name, 12 * BLOCK)
    fill(manager, "a", 8 * BLOCK)
    with pytest.raises(NoRoom, match="64 tokens are wanted, 0 are free"):
        manager.grow("a", 8 * BLOCK, 8 * BLOCK + 1)
    fill(manager, "b", HEADROOM_TOKENS)  # its reservation holds whatever "a" does
    manager.close("a")
    fill(manager, "b", 12 * BLOCK)


def test_a_newcomer_leaves_what_it_is_told_to() -> None:
    manager = manager_of(8)
    with pytest.raises(NoRoom, match="512 are free, 320 of them for others"):
        manager.open("a", 4 * BLOCK, spare=5)
    manager.open("a", 4 * BLOCK, spare=4)


def test_growth_is_what_sessions_may_take_beyond_their_reservations() -> None:
    manager = manager_of(20)
    manager.open("a", 6 * BLOCK)
    manager.open("b", 9 * BLOCK)
    manager.open("c", 3 * BLOCK)
    assert [manager.growth(most) for most in (1, 4, 100)] == [2, 2 + 4, 2 + 5]
    fill(manager, "a", 6 * BLOCK)
    assert manager.growth(100) == 5


def test_store_refuses_what_has_no_room_and_takes_it_later() -> None:
    manager = KVStore(range(2), 2, (4, 4), 3 * BLOCK + 5, torch.empty(0)).manager
    assert manager.free_tokens == 3 * BLOCK
    manager.open("a", 2 * BLOCK)
    with pytest.raises(NoRoom, match="64 are free"):
        manager.open("b", BLOCK + 1)
    with pytest.raises(EngineError, match="open already"):
        manager.open("a", 1)
    with pytest.raises(EngineError):
        manager.open("c", 0)
    manager.close("a")
    manager.open("b", BLOCK + 1)
    assert manager.sessions == ["b"]


def test_a_refused_growth_changes_nothing() -> None:
    manager = manager_of(6)
    manager.open("b", BLOCK)
    table = manager.open("a", 6 * BLOCK)
    fill(manager, "a", 5 * BLOCK)
    before = list(table.blocks), table.length, manager.free_tokens
    with pytest.raises(NoRoom):
        manager.grow("a", 5 * BLOCK, 6 * BLOCK)
    assert (table.blocks, table.length, manager.free_tokens) == before


def test_rows_of_a_lone_session_lie_in_a_row() -> None:
    manager = manager_of(8)
    table = manager.open("a", 4 * BLOCK)
    other = manager.open("b", 4 * BLOCK)
    for end in (1, 70, 200, 256):
        fill(manager, "a", end)
        fill(manager, "b", end)
    assert table.is_contiguous
    assert other.is_contiguous
    assert table.contiguous(3, 200) == slice(3, 200)
    assert list(other.slot_mapping(5, 200)) == list(range(256 + 5, 256 + 200))


def test_rows_that_do_not_lie_in_a_row_are_found_all_the_same() -> None:
    manager = manager_of(6)
    for name in "abc":
        manager.open(name, 2 * BLOCK)
        fill(manager, name, 2 * BLOCK)
    manager.close("a")
    manager.close("c")
    table = manager.open("d", 4 * BLOCK)
    fill(manager, "d", 4 * BLOCK)
    assert table.blocks == [0, 1, 4, 5]
    assert not table.is_contiguous
    assert list(table.slot_mapping(BLOCK, 3 * BLOCK)) == [
        *range(BLOCK, 2 * BLOCK),
        *range(4 * BLOCK, 5 * BLOCK),
    ]


def test_rollback_only_goes_back() -> None:
    manager = manager_of(1)
    manager.open("a", 10).length = 6
    manager.rollback("a", 4)
    assert manager.table("a").length == 4
    for length in (5, -1):
        with pytest.raises(EngineError):
            manager.rollback("a", length)
    with pytest.raises(EngineError, match="not open"):
        manager.table("b")


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
    manager = manager_of(9)
    for kind, number, tokens in orders:
        name = f"s{number}"
        is_open = name in manager.sessions
        try:
            if kind == "open" and not is_open:
                manager.open(name, tokens, known=tokens // 3)
            elif kind == "grow" and is_open:
                table = manager.table(name)
                fill(manager, name, min(table.capacity, max(tokens, table.length)))
            elif kind == "close":
                manager.close(name)
        except NoRoom:
            assert kind == "open" or blocks_for(tokens) > manager.table(name).reserved
        tables = [manager.table(each) for each in manager.sessions]
        blocks = [block for table in tables for block in table.blocks]
        assert len(set(blocks)) == len(blocks)
        held = sum(max(table.reserved, len(table.blocks)) for table in tables)
        assert manager.free_tokens == (9 - held) * BLOCK >= 0
        assert all(len(table.blocks) >= blocks_for(table.length) for table in tables)
