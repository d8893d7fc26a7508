"""The rate of a link by the arrivals of one transfer, however its stream came to its pace."""

import pytest

from swarm.p2p.arrivals import Arrivals

RATE = 12.5e6  # bytes per second: 100 Mbit/s
PIECE = 32 * 1024
NEAR = 0.05


def arriving(bursts: list[int], round_trip: float, rate: float = RATE) -> Arrivals:
    """Bursts of so many pieces, one a round trip, each as fast as the link lets it."""
    arrivals, now = Arrivals(), 0.0
    for pieces in bursts:
        began = now
        for _ in range(pieces):
            now += PIECE / rate
            arrivals.add(PIECE, now)
        now = max(now, began + round_trip)
    return arrivals


def test_a_steady_stream_has_the_rate_of_the_link() -> None:
    assert arriving([100], 0.0).rate() == pytest.approx(RATE, rel=NEAR)


def test_slow_start_is_not_taken_for_the_rate() -> None:
    """The stream fills a quarter of the link when it ends: its mean is 22 of 100 Mbit/s."""
    arrivals = arriving([1, 2, 4, 8, 16, 16], 0.08)
    assert arrivals.bytes / arrivals.seconds < 0.35 * RATE
    assert arrivals.rate() == pytest.approx(RATE, rel=NEAR)


def test_a_pause_of_the_machine_changes_nothing() -> None:
    arrivals, now = Arrivals(), 0.0
    for number in range(100):
        now += PIECE / RATE
        arrivals.add(PIECE, now + max(0.0, 0.1 - now / 2) * (number == 50))
    assert arrivals.rate() == pytest.approx(RATE, rel=NEAR)


def test_a_stream_that_losses_hold_back_has_its_own_rate() -> None:
    """Two pieces a round trip for good: what anything sent over this link will get."""
    own = 2 * PIECE / 0.08
    assert arriving([2] * 30, 0.08).rate() == pytest.approx(own, rel=0.4)


def test_what_comes_all_at_once_has_its_mean() -> None:
    assert arriving([8], 0.0, rate=1e9).rate() == pytest.approx(1e9, rel=NEAR)


@pytest.mark.parametrize("pieces", [0, 1])
def test_too_little_says_nothing(pieces: int) -> None:
    assert arriving([pieces], 0.0).rate() is None


def test_a_transfer_is_settled_when_it_grows_no_more() -> None:
    assert arriving([100], 0.0).is_settled(0.1)
    assert not Arrivals().is_settled(0.1)
    growing, now = Arrivals(), 0.0
    for number in range(1, 100):
        now += PIECE / (RATE * number / 100)
        growing.add(PIECE, now)
    assert not growing.is_settled(0.1)
