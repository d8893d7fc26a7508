"""StagePace: a device that becomes slow shows; company, prompts and single hiccups do not."""

import pytest

from node.serving.stage_pace import FORGET_SECONDS, SLOWER, WINDOW_SECONDS, StagePace

LOADED, SLOW = 0.1, 2.0


def paced(
    seconds: float, begin: float, end: float, pace: StagePace | None = None, sessions: int = 1
) -> StagePace:
    """A stage whose steps take so long from one moment to another."""
    pace = pace or StagePace(LOADED)
    for second in range(int(begin), int(end)):
        pace.note(1, seconds, sessions, float(second))
    return pace


def test_steps_that_all_take_far_longer_are_told_after_a_while() -> None:
    pace = paced(SLOW, 0, WINDOW_SECONDS)
    assert pace.step_seconds(WINDOW_SECONDS) == LOADED
    pace = paced(SLOW, WINDOW_SECONDS, WINDOW_SECONDS + 1, pace)
    assert pace.step_seconds(WINDOW_SECONDS + 1) == SLOW


def test_one_step_as_quick_as_ever_takes_it_back_at_once() -> None:
    pace = paced(SLOW, 0, 20)
    pace.note(1, LOADED, 1, 20.0)
    assert pace.step_seconds(20.0) == LOADED
    paced(SLOW, 21, 21 + WINDOW_SECONDS, pace)
    assert pace.step_seconds(30.0) == LOADED, "a hiccup is none before two windows are full of it"


@pytest.mark.parametrize("seconds", [LOADED, SLOWER * LOADED, SLOWER * LOADED + 0.04])
def test_what_is_somewhat_slower_is_not_told(seconds: float) -> None:
    assert paced(seconds, 0, 60).step_seconds(60.0) == LOADED


def test_small_models_may_take_many_times_of_next_to_nothing() -> None:
    pace = paced(0.02, 0, 60, StagePace(0.001))
    assert pace.step_seconds(60.0) == 0.001


def test_company_and_prompts_make_no_device_slow() -> None:
    assert paced(SLOW, 0, 60, sessions=16).step_seconds(60.0) == LOADED
    pace = StagePace(LOADED)
    for second in range(60):
        pace.note(256, 30.0, 1, float(second))
    assert pace.step_seconds(60.0) == LOADED


def test_a_figure_is_told_anew_only_if_it_is_quite_another() -> None:
    pace = paced(SLOW, 0, 20)
    paced(1.5 * SLOW, 20, 40, pace)
    assert pace.step_seconds(40.0) == SLOW
    paced(4 * SLOW, 40, 60, pace)
    assert pace.step_seconds(60.0) == 4 * SLOW


def test_slowness_without_a_step_for_long_is_forgotten() -> None:
    pace = paced(SLOW, 0, 20)
    assert pace.step_seconds(20 + FORGET_SECONDS / 2) == SLOW
    assert pace.step_seconds(21 + FORGET_SECONDS) == LOADED
    pace.note(1, SLOW, 1, 22 + FORGET_SECONDS)
    assert pace.step_seconds(22 + FORGET_SECONDS) == LOADED
