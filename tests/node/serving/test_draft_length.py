"""Guesses are computed when they pay: when rows are cheap beside the round trip and come true."""

from hypothesis import given
from hypothesis import strategies as st

from node.serving.draft_length import LEAST_GAIN, ROW_COST, DraftLength, best_draft_length


def learned(rounds: int, *, hits: bool, away: float, compute: float) -> DraftLength:
    """A session whose guesses all came true, or none did."""
    made, now = DraftLength(), 0.0
    for _ in range(rounds):
        made.choose([1, 2, 3, 4], now)
        now += away
        made.note_return(now, 0.0)
        made.note_compute(compute, 1, [1] if hits else [9])
    return made


def test_a_long_way_round_and_true_guesses_make_all_of_them_worthwhile() -> None:
    made = learned(30, hits=True, away=0.1, compute=0.001)
    assert made.choose([5, 6, 7, 8], 0.0) == [5, 6, 7, 8]


def test_guesses_that_never_come_true_are_given_up_and_taken_up_again() -> None:
    made = learned(40, hits=False, away=0.1, compute=0.01)
    assert made.choose([5, 6, 7, 8], 0.0) == []
    for _ in range(30):  # not computed, yet they would have been right
        made.note_compute(0.01, 1, [5])
        made.choose([5, 6, 7, 8], 0.0)
    assert made.choose([5, 6, 7, 8], 0.0) == [5, 6, 7, 8]


def test_rows_that_cost_more_than_they_yield_are_not_computed() -> None:
    assert best_draft_length(0.2, 0.0, 1.0, 8) == 0
    assert best_draft_length(0.2, 1.0, 0.01, 8) > 0


def test_nothing_measured_is_nothing_gained() -> None:
    assert best_draft_length(1.0, 0.0, 0.0, 8) == 0
    assert DraftLength().choose([1, 2], 0.0) == []


def test_the_compute_of_other_stages_is_not_round_trip() -> None:
    made = DraftLength()
    made.choose([], 10.0)
    made.note_return(11.0, 0.75)
    assert made.away_seconds == 0.25
    made.note_return(99.0, 0.0)  # not of the ring: nothing was emitted
    assert made.away_seconds == 0.25


def test_a_step_of_many_rows_is_counted_as_one_of_one_row() -> None:
    made = DraftLength()
    made.note_compute(1 + 4 * ROW_COST, 5, [1])
    assert made.compute_seconds == 1


@given(st.floats(0, 1), st.floats(0, 10), st.floats(0, 10), st.integers(0, 8))
def test_the_choice_beats_no_guess_or_is_none(
    acceptance: float, away: float, compute: float, most: int
) -> None:
    count = best_draft_length(acceptance, away, compute, most)
    assert 0 <= count <= most
    if count:
        ids = sum(acceptance**place for place in range(count + 1))
        slower = 1 + ROW_COST * count * compute / (away + compute)
        assert ids / slower > LEAST_GAIN
