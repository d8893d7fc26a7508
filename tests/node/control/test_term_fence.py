"""TermFence: accepted plans only ever grow later, and a restart forgets nothing."""

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.control.plan_store import TermFence
from swarm.election import TERM_JUMP, PlanOrder
from swarm.errors import BadInput
from swarm.records import TERM_CAP

orders = st.builds(
    PlanOrder, st.integers(0, 3000), st.integers(0, 3), st.sampled_from(["aa", "bb", "cc"])
)


def test_a_later_plan_is_accepted_and_an_earlier_one_is_not(tmp_path: Path) -> None:
    fence = TermFence(tmp_path)
    assert fence.order_of("s") is None
    assert fence.accept("s", PlanOrder(4, 1, "aa"))
    assert not fence.accept("s", PlanOrder(4, 1, "aa"))
    assert not fence.accept("s", PlanOrder(3, 0, "zz"))
    assert not fence.accept("s", PlanOrder(4, 2, "zz"))
    assert fence.order_of("s") == PlanOrder(4, 1, "aa")
    assert fence.accept("s", PlanOrder(4, 0, "aa"))


def test_a_term_far_above_the_accepted_one_is_a_lie(tmp_path: Path) -> None:
    fence = TermFence(tmp_path)
    fence.accept("s", PlanOrder(1, 0, "aa"))
    assert not fence.accept("s", PlanOrder(2 + TERM_JUMP, 0, "aa"))
    assert fence.accept("s", PlanOrder(1 + TERM_JUMP, 0, "aa"))


def test_the_first_plan_of_all_is_held_against_what_the_others_follow(tmp_path: Path) -> None:
    fence = TermFence(tmp_path)
    high = PlanOrder(10 * TERM_JUMP, 0, "aa")
    assert not fence.accept("s", high)
    assert fence.accept("s", high, common_term=high.term)


@pytest.mark.parametrize("term", [TERM_CAP, 2**64 - 1, 10**40])
def test_a_file_with_a_term_that_nobody_can_follow_is_ignored_with_a_word(
    tmp_path: Path, term: int, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "accepted.json").write_text(f'{{"s": [{term}, 0, "aa"], "t": [4, 0, "bb"]}}')
    fence = TermFence(tmp_path)
    assert fence.order_of("s") is None
    assert fence.order_of("t") == PlanOrder(4, 0, "bb")
    assert "absurd and ignored" in caplog.text
    assert fence.accept("s", PlanOrder(3, 0, "cc"))
    assert TermFence(tmp_path).order_of("s") == PlanOrder(3, 0, "cc")


def test_a_restart_remembers_what_was_accepted(tmp_path: Path) -> None:
    TermFence(tmp_path).accept("s", PlanOrder(4, 1, "aa"))
    again = TermFence(tmp_path)
    assert again.order_of("s") == PlanOrder(4, 1, "aa")
    assert not again.accept("s", PlanOrder(4, 1, "aa"))


def test_swarms_do_not_fence_each_other(tmp_path: Path) -> None:
    fence = TermFence(tmp_path)
    fence.accept("one", PlanOrder(9, 0, "aa"))
    assert fence.accept("other", PlanOrder(1, 0, "aa"))
    again = TermFence(tmp_path)
    assert again.order_of("one") == PlanOrder(9, 0, "aa")
    assert again.order_of("other") == PlanOrder(1, 0, "aa")


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    TermFence(tmp_path).accept("s", PlanOrder(4, 1, "aa"))
    (tmp_path / "accepted.new").write_text('{"s": [9')
    assert TermFence(tmp_path).order_of("s") == PlanOrder(4, 1, "aa")
    assert TermFence(tmp_path).accept("s", PlanOrder(5, 1, "aa"))
    assert TermFence(tmp_path).order_of("s") == PlanOrder(5, 1, "aa")


def test_a_full_disk_accepts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fence = TermFence(tmp_path)
    fence.accept("s", PlanOrder(4, 1, "aa"))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("node.control.plan_store.os.fsync", full)
        with pytest.raises(BadInput, match="No space left"):
            fence.accept("s", PlanOrder(5, 1, "aa"))
    assert fence.order_of("s") == TermFence(tmp_path).order_of("s") == PlanOrder(4, 1, "aa")
    assert fence.accept("s", PlanOrder(5, 1, "aa"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"s"',
        "[[1, 2]]",
        '{"s": 4}',
        '{"s": [4, 1]}',
        '{"s": ["x", 1, "aa"]}',
        '{"s": [4, -1, "aa"]}',
        '{"s": null}',
        '{"s": []}',
    ],
)
def test_a_damaged_file_is_refused_with_the_next_step(tmp_path: Path, text: str) -> None:
    (tmp_path / "accepted.json").write_text(text)
    with pytest.raises(BadInput, match=r"is damaged.*Delete it"):
        TermFence(tmp_path).order_of("s")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(orders, st.booleans()), max_size=12))
def test_accepted_orders_strictly_increase_whatever_is_offered_and_whenever_it_restarts(
    offers: list[tuple[PlanOrder, bool]],
) -> None:
    with TemporaryDirectory() as folder:
        fence = TermFence(Path(folder))
        accepted: list[PlanOrder] = []
        for order, restarts in offers:
            if restarts:
                fence = TermFence(Path(folder))
            if fence.accept("s", order):
                accepted.append(order)
            assert fence.order_of("s") == (accepted[-1] if accepted else None)
        assert all(one < other for one, other in pairwise(accepted))
