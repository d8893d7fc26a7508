"""Rows of a common beginning are copied, kept after their session, and give way to sessions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.engine.cache import SMALLEST_BLOCK, KVStore
from node.engine.prefixes import LEAST_KEPT, MOST_KEPT, Prompt, Rows, longest
from swarm.errors import NoRoom

LIKE = torch.empty(0)
IDS = list(range(100, 140))


def store_of(blocks: int) -> KVStore:
    return KVStore(range(2), 2, (4, 4), blocks * SMALLEST_BLOCK, LIKE)


def opened(store: KVStore, session: str, ids: list[int], owner: str = "me", room: int = 64) -> int:
    """Open a session, share, and compute its whole prompt: a row holds its id."""
    store.open(session, room)
    held = store.share(session, Prompt.of(owner, ids))
    slot = store.slot(session)
    for layer in range(2):
        for view in store.view(layer, slot.size):
            for place in range(held, len(ids)):
                view[slot.index, :, place] = ids[place]
    slot.length = slot.written = len(ids)
    return held


def rows(store: KVStore, session: str) -> list[float]:
    """The rows of a session's prompt, if they are the same in every layer, head and place."""
    slot = store.slot(session)
    views = [view for layer in range(2) for view in store.view(layer, slot.size)]
    mine = torch.stack([view[slot.index, :, : slot.length] for view in views])
    assert bool((mine == mine[:1, :1, :, :1]).all())
    found: list[float] = mine[0, 0, :, 0].tolist()
    return found


def test_rows_of_the_longest_common_beginning_are_found() -> None:
    offers = [
        Rows(0, Prompt.of("me", [1, 2, 3, 4]), 4),
        Rows(64, Prompt.of("me", [1, 2, 3, 9]), 2),
        Rows(128, Prompt.of("you", [1, 2, 3, 4, 5]), 5),
    ]
    assert longest(Prompt.of("me", [1, 2, 3, 9, 9]), offers) == (0, 3)
    assert longest(Prompt.of("me", [1, 2, 3]), offers) == (0, 2)  # the last is computed again
    assert longest(Prompt.of("", [1, 2, 3]), offers) == (-1, 0)
    assert longest(Prompt.of("me", []), offers) == (-1, 0)


def test_a_session_takes_over_the_rows_of_an_open_and_of_a_closed_one() -> None:
    store = store_of(8)
    opened(store, "a", IDS)
    assert opened(store, "b", [*IDS[:30], 7, 8]) == 30
    store.close("a")
    store.close("b")
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
    store.open("a", 64)
    store.share("a", Prompt.of("me", IDS))
    store.slot("a").length = 20
    assert opened(store, "b", IDS) == 20
    store.rollback("a", 3)
    assert store.slot("a").prefix.count == 3


def test_kept_prompts_count_as_free_and_give_way_the_oldest_first() -> None:
    store = store_of(3)
    free = store.free_tokens
    for name, start in (("a", 0), ("b", 1000), ("c", 2000)):
        opened(store, name, [start + place for place in range(30)])
        store.close(name)
    assert store.free_tokens == free
    assert opened(store, "d", [*range(30), 5]) == 0  # its room was that of "a", the oldest
    assert store.free_tokens == free - 64
    assert opened(store, "e", [2000 + place for place in range(30)]) == 29
    with pytest.raises(NoRoom):
        store.open("f", 128)
    assert store.free_tokens == 64


def test_a_refusal_forgets_no_prompt() -> None:
    store = store_of(4)
    opened(store, "a", IDS)
    opened(store, "b", [1, *IDS])
    store.close("a")
    with pytest.raises(NoRoom):
        store.open("big", 256)
    assert opened(store, "c", IDS) == len(IDS) - 1


def test_a_prompt_is_kept_once_in_its_longest_form() -> None:
    store = store_of(8)
    for session, ids in (("a", IDS[:20]), ("b", IDS), ("c", IDS[:25]), ("d", IDS)):
        opened(store, session, ids)
        store.close(session)
    assert [slot.session for slot in store._kept.values()] == ["b"]


def test_a_prompt_of_few_rows_is_not_kept_and_many_are_bounded() -> None:
    store = store_of(MOST_KEPT + 10)
    opened(store, "short", IDS[: LEAST_KEPT - 1])
    store.close("short")
    assert not store._kept
    for number in range(MOST_KEPT + 5):
        opened(store, f"s{number}", [number, *IDS])
        store.close(f"s{number}")
    assert len(store._kept) == MOST_KEPT


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 60), st.integers(0, 3)),
        max_size=40,
    )
)
def test_rows_are_always_those_of_the_ids_and_no_room_is_lost(
    orders: list[tuple[bool, int, int, int]],
) -> None:
    store = store_of(5)
    all_tokens = store.free_tokens
    live: dict[str, list[int]] = {}
    for is_open, number, count, kind in orders:
        session = f"s{number}"
        ids = [kind if place > 20 else 50 + kind % 2 for place in range(count)]
        if not is_open:
            store.close(session)
            live.pop(session, None)
        elif session not in live:
            try:
                opened(store, session, ids, room=64 << kind % 2)
            except NoRoom:
                continue
            live[session] = ids
        assert all(rows(store, name) == ids for name, ids in live.items())
        used = sum(store.slot(name).size for name in live)
        assert store.free_tokens == all_tokens - used
