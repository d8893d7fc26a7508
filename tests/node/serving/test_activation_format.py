"""ActivationFormat: slow links get int8, quick and unknown ones full rows, and nothing flaps."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.serving.activation_format import (
    CHUNK_SECONDS,
    LINKS_REMEMBERED,
    ActivationFormat,
    always_full,
)

HIDDEN = 4096
CHUNK_BYTES = 256 * HIDDEN * 4
LIMIT = CHUNK_BYTES / CHUNK_SECONDS  # bytes per second
ANNA, BERT = "anna", "bert"
GIGABIT = 0.9 * 125e6
HOME_UPLOAD = 2e6


class Link:
    """A link whose speed changes, and what was said of it."""

    def __init__(self, wish: str = "auto", hidden: int = HIDDEN) -> None:
        self.speeds = {ANNA: math.inf, BERT: math.inf}
        self.said: list[tuple[str, float]] = []
        self.format = ActivationFormat(
            wish, hidden, self.speeds.__getitem__, lambda *words: self.said.append(words)
        )

    def decide(self, bytes_per_second: float, step_seconds: float = 0.01) -> bool:
        self.speeds[ANNA] = bytes_per_second
        return self.format.use_int8(ANNA, step_seconds)


@pytest.mark.parametrize("hidden", [96, 1024, 4096, 8192, 16384])
def test_a_local_network_and_an_unknown_link_get_full_rows(hidden: int) -> None:
    assert not Link(hidden=hidden).decide(GIGABIT)
    assert not Link(hidden=hidden).decide(math.inf)


def test_the_upload_of_a_home_gets_int8_for_wide_rows_only() -> None:
    assert Link(hidden=4096).decide(HOME_UPLOAD)
    assert not Link(hidden=96).decide(HOME_UPLOAD)


def test_sending_that_hides_behind_a_slow_step_stays_in_full() -> None:
    assert Link().decide(LIMIT / 2, step_seconds=0.1)
    assert not Link().decide(LIMIT / 2, step_seconds=3 * CHUNK_SECONDS)


def test_a_link_about_as_slow_as_the_limit_does_not_flap() -> None:
    link = Link()
    around = [0.95, 1.05, 0.9, 1.1, 1.5, 1.9, 0.6]
    assert [link.decide(share * LIMIT) for share in around] == [True] * len(around)
    assert not link.decide(2.1 * LIMIT)
    assert [link.decide(share * LIMIT) for share in (1.9, 1.1, 1.01)] == [False] * 3
    assert link.decide(0.9 * LIMIT)
    assert link.said == [(ANNA, 0.95 * LIMIT), (ANNA, 0.0), (ANNA, 0.9 * LIMIT)]


def test_two_stages_of_a_node_judge_the_same_link_each_for_itself() -> None:
    link = Link()
    for _ in range(3):
        assert link.decide(LIMIT / 2, step_seconds=0.1)
        assert not link.decide(LIMIT / 2, step_seconds=3 * CHUNK_SECONDS)
    assert len(link.said) == 1


def test_rows_of_half_the_width_go_in_full_over_links_of_half_the_speed() -> None:
    link = Link()
    link.speeds[ANNA] = 0.75 * LIMIT
    for _ in range(2):  # neither answer changes the other
        assert link.format.use_int8(ANNA, 0.01, "f32")
        assert not link.format.use_int8(ANNA, 0.01, "bf16")
    assert link.said == [(ANNA, 0.75 * LIMIT)]


def test_links_are_judged_one_by_one() -> None:
    link = Link()
    assert link.decide(HOME_UPLOAD)
    assert not link.format.use_int8(BERT, 0.01)
    assert link.decide(HOME_UPLOAD)
    assert link.said == [(ANNA, HOME_UPLOAD)]


@pytest.mark.parametrize(("wish", "narrow"), [("full", False), ("int8", True)])
@given(speed=st.floats(1, 1e12), step=st.floats(0, 10))
def test_a_wish_is_obeyed_whatever_was_measured(
    wish: str, narrow: bool, speed: float, step: float
) -> None:
    link = Link(wish)
    assert link.decide(speed, step) == narrow
    assert link.said == []


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=30))
def test_it_changes_its_mind_only_across_the_whole_gap(shares: list[float]) -> None:
    link = Link()
    found = [link.decide(share * LIMIT) for share in shares]
    for before, after, share in zip([False, *found], found, shares, strict=False):
        if after and not before:
            assert share < 1
        if before and not after:
            assert share >= 2
    assert len(link.said) == sum(a != b for a, b in itertools.pairwise([False, *found]))


def test_a_server_that_was_told_nothing_narrows_nothing() -> None:
    assert not always_full(ANNA, 0.0)


def test_links_that_come_and_go_are_not_remembered_without_end() -> None:
    link = Link()
    for number in range(LINKS_REMEMBERED + 50):
        link.decide(1000.0, 0.01 + number)
    assert len(link.format._int8_links) <= LINKS_REMEMBERED
