"""Blocks are found, shared and given back: what is free is always what nobody holds."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from node.engine.kv_cache.block_pool import BLOCK_TOKENS, BlockPool, blocks_for, runs_of

COUNT = 12


def test_a_block_holds_its_tokens_and_not_one_more() -> None:
    assert [blocks_for(n) for n in (0, 1, BLOCK_TOKENS, BLOCK_TOKENS + 1)] == [0, 1, 1, 2]


@given(st.sets(st.integers(0, 40)))
def test_runs_are_all_blocks_in_order_and_never_touch(blocks: set[int]) -> None:
    runs = runs_of(blocks)
    assert [block for run in runs for block in run] == sorted(blocks)
    assert all(before.stop < after.start for before, after in itertools.pairwise(runs))


def test_earmarked_blocks_lie_side_by_side_and_others_take_them_last() -> None:
    pool = BlockPool(6)
    earmarked = pool.earmark(3)
    assert earmarked == range(3)
    assert pool.earmark(2) == range(3, 5)
    assert pool.find_free([]) == 5
    pool.acquire([5])
    assert pool.find_free(earmarked) == 0
    assert pool.find_free([]) == 0  # all others are wanted by somebody: then any will do
    pool.acquire([0])
    assert pool.find_free(earmarked) == 1  # its own first block is gone
    pool.unmark(earmarked)
    assert pool.earmark(2) == range(1, 3)


def test_where_no_row_is_long_enough_the_longest_half_is_earmarked() -> None:
    pool = BlockPool(5)
    pool.acquire([2])
    assert pool.earmark(4) == range(2)
    assert pool.earmark(5) == range(3, 5)
    assert pool.earmark(1) == range(0)


@given(st.lists(st.tuples(st.sampled_from("uklf"), st.integers(0, COUNT - 1)), max_size=80))
def test_free_is_what_nobody_holds(orders: list[tuple[str, int]]) -> None:
    pool = BlockPool(COUNT)
    used, kept = [0] * COUNT, [0] * COUNT
    for kind, block in orders:
        freed: list[int] = []
        if kind == "u":
            pool.acquire([block])
            used[block] += 1
        elif kind == "k":
            pool.pin([block])
            kept[block] += 1
        elif kind == "l" and used[block]:
            freed = pool.release([block])
            used[block] -= 1
        elif kind == "f" and kept[block]:
            freed = pool.unpin([block])
            kept[block] -= 1
        else:
            continue
        assert freed == ([block] if kind in "lf" and not used[block] + kept[block] else [])
        assert pool.available == used.count(0)
        assert [pool.ref_count(n) for n in range(COUNT)] == used
        assert [pool.is_pinned(n) for n in range(COUNT)] == [count > 0 for count in kept]
        free = [n for n in range(COUNT) if not used[n] + kept[n]]
        assert pool.find_free([]) == (free[0] if free else None)
