"""Blocks of a common beginning are shared, kept after their session, and give way to sessions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.engine.kv_cache.arena import KVStore
from node.engine.kv_cache.block_pool import BLOCK_TOKENS as BLOCK
from node.engine.kv_cache.block_pool import BlockPool
from node.engine.kv_cache.prefix_cache import (
    FEWEST_ROWS,
    MOST_PREFIXES,
    CachedPrefix,
    PrefixCache,
    Prompt,
)
from swarm.errors import NoRoom

LIKE = torch.empty(0)
IDS = list(range(100, 140))
LONG = list(range(1000, 1000 + 3 * BLOCK))  # three blocks


def store_of(blocks: int) -> KVStore:
    return KVStore(range(2), 2, (4, 4), blocks * BLOCK, LIKE)


def opened(store: KVStore, session: str, ids: list[int], owner: str = "me", room: int = 64) -> int:
    """Open a session, share, and compute its whole prompt: a row holds its id."""
    store.manager.open(session, room, known=len(ids))
    held = store.manager.share(session, Prompt.of(owner, ids))
    write(store, session, ids, held)
    return held


def write(store: KVStore, session: str, ids: list[int], first: int) -> None:
    """Compute the rows from `first` on."""
    table = store.manager.table(session)
    store.manager.grow(session, first, len(ids))
    for layer in range(2):
        for arena in store.arena.layer(layer):
            values = torch.tensor(ids[first:], dtype=torch.float32)
            arena[:, table.slot_mapping(first, len(ids))] = values[None, :, None]
    table.length = len(ids)


def rows(store: KVStore, session: str) -> list[float]:
    """The rows of a session's prompt, if they are the same in every layer and head."""
    table = store.manager.table(session)
    arenas = [arena for layer in range(2) for arena in store.arena.layer(layer)]
    mine = torch.stack([arena[:, table.slot_mapping(0, table.length)] for arena in arenas])
    assert bool((mine == mine[:1, :1, :, :1]).all())
    found: list[float] = mine[0, 0, :, 0].tolist()
    return found


def test_rows_of_the_longest_common_beginning_are_found() -> None:
    offers = [
        CachedPrefix(Prompt.of("me", [1, 2, 3, 4]), 4, [0]),
        CachedPrefix(Prompt.of("me", [1, 2, 3, 9]), 2, [1]),
        CachedPrefix(Prompt.of("you", [1, 2, 3, 4, 5]), 5, [2]),
    ]
    cache = PrefixCache(BlockPool(3))
    assert cache.longest(Prompt.of("me", [1, 2, 3, 9, 9]), offers) == (3, [0])
    assert cache.longest(Prompt.of("me", [1, 2, 3]), offers) == (2, [0])  # the last is computed
    assert cache.longest(Prompt.of("", [1, 2, 3]), offers) == (0, [])
    assert cache.longest(Prompt.of("me", []), offers) == (0, [])


def test_a_session_takes_over_the_rows_of_an_open_and_of_a_closed_one() -> None:
    store = store_of(8)
    opened(store, "a", IDS)
    assert opened(store, "b", [*IDS[:30], 7, 8]) == 30
    store.manager.close("a")
    store.manager.close("b")
    assert opened(store, "c", [*IDS, 9], room=128) == len(IDS)
    assert rows(store, "c") == [*IDS, 9]


def test_nothing_is_shared_with_another_owner_or_nobody() -> None:
    store = store_of(8)
    opened(store, "a", IDS)
    assert opened(store, "b", IDS, owner="you") == 0
    opened(store, "c", IDS, owner="")
    assert opened(store, "d", IDS, owner="") == 0


def test_rows_that_are_not_computed_yet_are_not_shared() -> None:
    store = store_of(8)
    store.manager.open("a", 64)
    store.manager.share("a", Prompt.of("me", IDS))
    write(store, "a", IDS[:20], 0)
    assert opened(store, "b", IDS) == 20
    store.manager.rollback("a", 3)
    assert store.manager.table("a").prefix == 3


def test_whole_blocks_of_a_common_beginning_are_held_once() -> None:
    store = store_of(12)
    opened(store, "a", LONG, room=4 * BLOCK)
    free = store.manager.free_tokens
    ids = [*LONG[: 2 * BLOCK + 9], 7, 8]
    assert opened(store, "b", ids, room=4 * BLOCK) == 2 * BLOCK + 9
    assert store.manager.table("b").blocks[:2] == store.manager.table("a").blocks[:2]
    assert (
        store.manager.table("b").blocks[2] != store.manager.table("a").blocks[2]
    )  # the rest of a block is copied
    assert store.manager.free_tokens == free - 2 * BLOCK  # of the four that it wants
    assert rows(store, "a") == LONG
    assert rows(store, "b") == ids
    store.manager.close("a")
    assert rows(store, "b") == ids


def test_a_session_that_begins_within_what_it_shares_leaves_it_to_the_others() -> None:
    store = store_of(12)
    opened(store, "a", LONG, room=4 * BLOCK)
    store.manager.open("b", 4 * BLOCK, known=len(LONG) + 1)
    assert store.manager.share("b", Prompt.of("me", [*LONG, 5])) == len(LONG)
    free = store.manager.free_tokens
    write(store, "b", LONG[:BLOCK], 30)
    assert store.manager.table("b").length == BLOCK
    assert rows(store, "b") == LONG[:BLOCK]
    assert not set(store.manager.table("b").blocks) & set(store.manager.table("a").blocks)
    assert store.manager.free_tokens == free  # its room for copies has gone into them
    assert rows(store, "a") == LONG


def test_rows_that_only_a_kept_prompt_shares_are_written_in_place() -> None:
    store = store_of(12)
    opened(store, "a", LONG, room=4 * BLOCK)
    store.manager.close("a")
    store.manager.open("b", 4 * BLOCK, known=len(LONG) + 1)
    assert store.manager.share("b", Prompt.of("me", [*LONG, 5])) == len(LONG)
    before = list(store.manager.table("b").blocks)
    write(store, "b", LONG[:BLOCK], 30)
    assert store.manager.table("b").blocks == before
    assert rows(store, "b") == LONG[:BLOCK]
    assert not store.manager.prefixes


def test_an_idle_store_keeps_its_reservation_to_who_shares_all_and_begins_anew() -> None:
    store = store_of(12)
    ids = list(range(8 * BLOCK))
    opened(store, "a", ids, room=8 * BLOCK)
    store.manager.close("a")
    store.manager.open("b", 12 * BLOCK, known=len(ids))
    assert (
        store.manager.share("b", Prompt.of("me", ids)) == 7 * BLOCK
    )  # no block is left for a copy
    write(store, "b", ids, 0)
    assert rows(store, "b") == ids
    store.manager.grow("b", len(ids), 12 * BLOCK)


def test_room_for_copies_is_kept_until_the_first_step_only() -> None:
    store = store_of(20)
    opened(store, "a", LONG, room=4 * BLOCK)
    free = store.manager.free_tokens
    store.manager.open("b", 4 * BLOCK, known=len(LONG) + 1)
    store.manager.share("b", Prompt.of("me", [*LONG, 5]))
    assert store.manager.free_tokens == free - 4 * BLOCK  # as if nothing were shared
    store.manager.grow("b", len(LONG), len(LONG) + 1)
    assert store.manager.free_tokens == free - BLOCK


def test_who_shares_without_room_for_copies_shares_alone() -> None:
    store = store_of(7)
    opened(store, "a", LONG, room=3 * BLOCK)
    store.manager.close("a")
    ids = [*LONG, 5]
    store.manager.open("b", 4 * BLOCK, known=len(ids))
    store.manager.open("c", 3 * BLOCK, known=3 * BLOCK)  # no block is left
    assert store.manager.share("b", Prompt.of("me", ids)) == len(LONG)
    assert store.manager.share("c", Prompt.of("me", LONG)) == 0
    store.manager.grow("b", 0, len(ids))
    store.manager.grow("c", 0, 3 * BLOCK)


def test_kept_prompts_take_no_more_blocks_than_they_fill() -> None:
    store = store_of(12)
    opened(store, "a", IDS, room=8 * BLOCK)
    store.manager.grow("a", len(IDS), 8 * BLOCK)
    store.manager.table("a").length = 8 * BLOCK
    store.manager.close("a")
    assert [len(kept.blocks) for kept in store.manager.prefixes] == [1]


def test_kept_prompts_count_as_free_and_give_way_the_oldest_first() -> None:
    store = store_of(3)
    free = store.manager.free_tokens
    for name, start in (("a", 0), ("b", 1000), ("c", 2000)):
        opened(store, name, [start + place for place in range(30)])
        store.manager.close(name)
    assert store.manager.free_tokens == free
    assert opened(store, "d", [*range(500, 530), 5]) == 0  # its block was that of "a", the oldest
    assert store.manager.free_tokens == free - BLOCK
    assert opened(store, "e", [2000 + place for place in range(30)]) == 29
    with pytest.raises(NoRoom):
        store.manager.open("f", 2 * BLOCK)
    assert store.manager.free_tokens == BLOCK


def test_a_prompt_that_gives_way_to_its_own_successor_is_shared_up_to_a_block() -> None:
    store = store_of(4)
    opened(store, "a", LONG, room=3 * BLOCK)
    store.manager.close("a")
    ids = [*LONG[: 2 * BLOCK + 40], 1]
    store.manager.open("other", BLOCK)
    assert opened(store, "b", ids, room=3 * BLOCK) == 2 * BLOCK  # no block is left for a copy
    assert rows(store, "b") == ids


def test_a_refusal_forgets_no_prompt() -> None:
    store = store_of(4)
    opened(store, "a", IDS)
    opened(store, "b", [1, *IDS])
    store.manager.close("a")
    with pytest.raises(NoRoom):
        store.manager.open("big", 4 * BLOCK)
    assert opened(store, "c", IDS) == len(IDS) - 1


def test_a_prompt_is_kept_once_in_its_longest_form() -> None:
    store = store_of(8)
    for session, ids in (("a", IDS[:20]), ("b", IDS), ("c", IDS[:25]), ("d", IDS)):
        opened(store, session, ids)
        store.manager.close(session)
    assert [kept.prompt.ids.tolist() for kept in store.manager.prefixes] == [IDS]


def test_a_prompt_of_few_rows_is_not_kept_and_many_are_bounded() -> None:
    store = store_of(MOST_PREFIXES + 10)
    opened(store, "short", IDS[: FEWEST_ROWS - 1])
    store.manager.close("short")
    assert not store.manager.prefixes
    for number in range(MOST_PREFIXES + 5):
        opened(store, f"s{number}", [number, *IDS])
        store.manager.close(f"s{number}")
    assert len(store.manager.prefixes) == MOST_PREFIXES


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "open", "write", "again", "close"]),
            st.integers(0, 5),
            st.integers(1, 4 * BLOCK),
            st.integers(0, 3),
        ),
        max_size=40,
    )
)
def test_rows_are_always_those_of_the_ids_and_reservations_are_kept(
    orders: list[tuple[str, int, int, int]],
) -> None:
    """A first step may begin anywhere in what is shared: another stage may have kept less."""
    store = store_of(9)
    live: dict[str, list[int]] = {}
    for order, number, count, kind in orders:
        session = f"s{number}"
        ids = [kind if place > 100 else 50 + kind % 2 for place in range(count)]
        if order == "close":
            store.manager.close(session)
            live.pop(session, None)
        elif order == "open" and session not in live:
            try:
                store.manager.open(session, 4 * BLOCK, known=count)
            except NoRoom:
                continue
            held = store.manager.share(session, Prompt.of("me", ids))
            live[session] = ids[:held]
        elif order in ("write", "again") and session in live:
            table = store.manager.table(session)
            known = list(table.prompt.ids)
            begin = len(live[session]) // kind if order == "again" and kind else len(live[session])
            end = min(len(known), begin + count)
            if begin < end:
                write(store, session, known[:end], begin)  # within its reservation: never refused
                live[session] = known[:end]
        assert all(rows(store, name) == ids for name, ids in live.items())
        tables = [store.manager.table(name) for name in live]
        used = {block for table in tables for block in table.blocks}
        assert (
            store.manager.free_tokens
            == (9 - len(used) - sum(table.outstanding for table in tables)) * BLOCK
        )
        assert store.manager.free_tokens >= 0
    for session in list(live):
        store.manager.close(session)
    while store.manager.prefixes:
        store.arena.clear(store.manager.prefixes.evict())
    assert bytes(store.manager._pool._taken) == bytes(9)
    assert all(bool((arena == 0).all()) for arena in store.arena.layer(0))
