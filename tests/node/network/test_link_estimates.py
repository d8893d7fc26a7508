"""What is known of links: no bad measurement decides, real work corrects, noise stays untold."""

import pytest

from node.network.link_estimates import SLOW_BYTES_PER_SECOND, SMOOTHING, LinkEstimates
from node.network.link_probe import LinkMeasurement
from swarm.hardware import Link

PEER = "peer"
FAST, SLOW = 2 * SLOW_BYTES_PER_SECOND, 0.1 * SLOW_BYTES_PER_SECOND


def measured(*rates: float, round_trip: float = 0.02) -> LinkEstimates:
    estimates = LinkEstimates(now=lambda: 100.0)
    for rate in rates:
        estimates.note_measurement(PEER, LinkMeasurement(round_trip, rate))
    return estimates


def told(estimates: LinkEstimates) -> Link:
    (link,) = estimates.links()
    return link


@pytest.mark.parametrize(
    "bad", [(SLOW, FAST), (FAST, SLOW), (FAST, SLOW, FAST), (SLOW, FAST, FAST)]
)
def test_one_bad_measurement_decides_nothing(bad: tuple[float, ...]) -> None:
    assert measured(*bad).of(PEER).bytes_per_second == FAST


@pytest.mark.parametrize(
    ("rates", "is_confirmed"),
    [
        ((), False),
        ((FAST,), True),
        ((SLOW,), False),
        ((SLOW, 1.2 * SLOW), True),
        ((SLOW, 2 * SLOW), False),
        ((SLOW, 2 * SLOW, 4 * SLOW), True),
        ((SLOW, FAST), True),
    ],
)
def test_a_slow_link_is_believed_when_two_agree(
    rates: tuple[float, ...], is_confirmed: bool
) -> None:
    assert measured(*rates).of(PEER).is_confirmed is is_confirmed


def test_large_frames_move_the_figure_step_by_step() -> None:
    estimates = measured(FAST)
    estimates.note_frame(PEER, SLOW)
    assert estimates.of(PEER).bytes_per_second == FAST + SMOOTHING * (SLOW - FAST)
    for _ in range(30):
        estimates.note_frame(PEER, SLOW)
    assert told(estimates).bytes_per_second == pytest.approx(SLOW, rel=0.3)


def test_a_transfer_beside_others_only_raises_it() -> None:
    estimates = measured(FAST)
    estimates.note_share(PEER, SLOW)
    assert estimates.of(PEER).bytes_per_second == FAST
    estimates.note_share(PEER, 2 * FAST)
    assert estimates.of(PEER).bytes_per_second > FAST


def test_heartbeats_move_the_round_trip() -> None:
    estimates = measured(FAST, round_trip=0.02)
    for _ in range(30):
        estimates.note_round_trip(PEER, 0.08)
    assert told(estimates).round_trip_seconds == pytest.approx(0.08, rel=0.3)


def test_nobody_hears_of_noise() -> None:
    estimates = measured(FAST, round_trip=0.001)
    before = told(estimates)
    estimates.note_frame(PEER, 1.1 * FAST)
    estimates.note_round_trip(PEER, 0.002)  # twice as far, and still a millisecond
    assert told(estimates) is before
    for _ in range(5):
        estimates.note_frame(PEER, 2 * FAST)
    assert told(estimates).bytes_per_second > 1.25 * FAST


def test_a_link_is_told_of_once_all_of_it_is_known() -> None:
    estimates = LinkEstimates()
    estimates.note_round_trip(PEER, 0.02)
    assert estimates.links() == []
    estimates.note_frame(PEER, FAST)
    assert told(estimates) == Link(PEER, 0.02, FAST)


def test_who_is_gone_is_forgotten() -> None:
    estimates = measured(FAST)
    assert estimates.links()
    estimates.keep_only({"another"})
    assert estimates.links() == []
    assert not estimates.of(PEER).is_confirmed
