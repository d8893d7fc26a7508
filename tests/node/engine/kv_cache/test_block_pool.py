"""Pages are found, shared and given back: what is free is always what nobody holds."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from node.engine.kv_cache.block_pool import PAGE_TOKENS, Pages, pages_for, runs_of

COUNT = 12


def test_a_page_holds_its_tokens_and_not_one_more() -> None:
    assert [pages_for(n) for n in (0, 1, PAGE_TOKENS, PAGE_TOKENS + 1)] == [0, 1, 1, 2]


@given(st.sets(st.integers(0, 40)))
def test_runs_are_all_pages_in_order_and_never_touch(pages: set[int]) -> None:
    runs = runs_of(pages)
    assert [page for run in runs for page in run] == sorted(pages)
    assert all(before.stop < after.start for before, after in itertools.pairwise(runs))


def test_wanted_pages_lie_side_by_side_and_others_take_them_last() -> None:
    pages = Pages(6)
    wanted = pages.want(3)
    assert wanted == range(3)
    assert pages.want(2) == range(3, 5)
    assert pages.find([]) == 5
    pages.use([5])
    assert pages.find(wanted) == 0
    assert pages.find([]) == 0  # all others are wanted by somebody: then any will do
    pages.use([0])
    assert pages.find(wanted) == 1  # its own first page is gone
    pages.give_up(wanted)
    assert pages.want(2) == range(1, 3)


def test_where_no_row_is_long_enough_the_longest_half_is_wanted() -> None:
    pages = Pages(5)
    pages.use([2])
    assert pages.want(4) == range(2)
    assert pages.want(5) == range(3, 5)
    assert pages.want(1) == range(0)


@given(st.lists(st.tuples(st.sampled_from("uklf"), st.integers(0, COUNT - 1)), max_size=80))
def test_free_is_what_nobody_holds(orders: list[tuple[str, int]]) -> None:
    pages = Pages(COUNT)
    used, kept = [0] * COUNT, [0] * COUNT
    for kind, page in orders:
        freed: list[int] = []
        if kind == "u":
            pages.use([page])
            used[page] += 1
        elif kind == "k":
            pages.keep([page])
            kept[page] += 1
        elif kind == "l" and used[page]:
            freed = pages.leave([page])
            used[page] -= 1
        elif kind == "f" and kept[page]:
            freed = pages.forget([page])
            kept[page] -= 1
        else:
            continue
        assert freed == ([page] if kind in "lf" and not used[page] + kept[page] else [])
        assert pages.available == used.count(0)
        assert [pages.users(n) for n in range(COUNT)] == used
        assert [pages.is_kept(n) for n in range(COUNT)] == [count > 0 for count in kept]
        free = [n for n in range(COUNT) if not used[n] + kept[n]]
        assert pages.find([]) == (free[0] if free else None)
