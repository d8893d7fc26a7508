"""Whose link is measured next: newcomers at once, then seldom, and nobody by two at a time."""

import random

import pytest

from node.network.link_estimates import SLOW_BYTES_PER_SECOND, LinkEstimates
from node.network.link_probe import LinkMeasurement
from node.network.measuring_schedule import (
    AGAIN_SECONDS,
    BUSY_CAP_SECONDS,
    JITTER,
    LOST_CAP_SECONDS,
    NEIGHBOURS,
    YIELD_SECONDS,
    MeasuringSchedule,
    neighbours,
)

FAST = LinkMeasurement(0.01, 2 * SLOW_BYTES_PER_SECOND)
SLOW = LinkMeasurement(0.01, 0.1 * SLOW_BYTES_PER_SECOND)


class Time:
    """What the schedule and the estimates agree on."""

    now = 1000.0


@pytest.fixture
def schedule() -> MeasuringSchedule:
    estimates = LinkEstimates(now=lambda: Time.now)
    return MeasuringSchedule("b", estimates, random.Random(1))


def note(schedule: MeasuringSchedule, peer: str, found: LinkMeasurement) -> None:
    schedule.estimates.note_measurement(peer, found)
    schedule.measured(peer, Time.now)


def test_the_peers_that_follow_are_neighbours_round_and_round() -> None:
    assert neighbours("c", "abcde") == ["d", "e", "a", "b"]
    many = [f"{number:03}" for number in range(100)]
    counts = [sum(peer in neighbours(each, many) for each in many) for peer in many]
    assert counts == [NEIGHBOURS] * 100


def test_of_two_newcomers_the_first_begins(schedule: MeasuringSchedule) -> None:
    assert schedule.due("abc", Time.now) == "c"
    note(schedule, "c", FAST)
    assert schedule.due("abc", Time.now) is None
    assert schedule.due("abc", Time.now + YIELD_SECONDS) == "a"


def test_whom_the_other_side_has_measured_is_not_measured_again(
    schedule: MeasuringSchedule,
) -> None:
    schedule.due("ab", Time.now)
    schedule.estimates.note_measurement("a", FAST)  # its exchange
    assert schedule.due("ab", Time.now + YIELD_SECONDS) is None


def test_a_measured_link_is_measured_again_in_an_hour_or_so(schedule: MeasuringSchedule) -> None:
    schedule.due("bc", Time.now)
    note(schedule, "c", FAST)
    assert schedule.due("bc", Time.now + AGAIN_SECONDS * (1 - JITTER) - 1) is None
    assert schedule.due("bc", Time.now + AGAIN_SECONDS * (1 + JITTER) + 1) == "c"


def test_a_slow_figure_is_measured_again_at_once(schedule: MeasuringSchedule) -> None:
    schedule.due("bc", Time.now)
    note(schedule, "c", SLOW)
    assert schedule.due("bc", Time.now) == "c"
    note(schedule, "c", SLOW)
    assert schedule.due("bc", Time.now) is None


def test_who_is_busy_or_gone_is_tried_ever_later_up_to_a_cap(schedule: MeasuringSchedule) -> None:
    schedule.due("bc", Time.now)
    pauses = []
    for _ in range(12):
        schedule.refused("c", Time.now, 1.0)
        pauses.append(schedule.turns["c"].not_before - Time.now)
    assert 0.5 <= pauses[0] <= 1.5
    assert BUSY_CAP_SECONDS * (1 - JITTER) <= pauses[-1] <= BUSY_CAP_SECONDS * (1 + JITTER)
    for _ in range(12):
        schedule.failed("c", Time.now)
    last = schedule.turns["c"].not_before - Time.now
    assert LOST_CAP_SECONDS * (1 - JITTER) <= last <= LOST_CAP_SECONDS * (1 + JITTER)


def test_who_left_is_a_newcomer_when_it_comes_back(schedule: MeasuringSchedule) -> None:
    schedule.due("bc", Time.now)
    schedule.failed("c", Time.now)
    assert schedule.due("bc", Time.now) is None
    schedule.due("b", Time.now)
    assert schedule.due("bc", Time.now) == "c"
