"""Peers behind kernel NATs: direct where a hole can be punched, relayed and well where not.

The peers hold no model, so that a machine with few cores can carry many of them; they do all that
a node does about its way to the others.
"""

import time
from collections.abc import Iterator

import pytest

from swarm.hardware import DIRECT, PUNCHED, RELAYED
from tests.network.homes import Ports
from tests.network.laboratory import Laboratory
from tests.network.town import Town, town_in

pytestmark = pytest.mark.network

PUNCH_SECONDS = 10.0  # from both being ready to a direct connection
BACK_SECONDS = 60.0  # from a relay that turns public to places at it


@pytest.fixture
def town(lab: Laboratory) -> Iterator[Town]:
    """An empty town; its peers end before its networks do."""
    with town_in(lab) as town:
        yield town


@pytest.mark.slow
def test_two_homes_that_keep_ports_talk_directly_where_there_are_six_public_hosts(
    town: Town,
) -> None:
    """How often that comes out well `python -m benchmarks.homes` counts."""
    town.settle(6)
    one, other = town.two_homes()
    one.kind_of(other, PUNCHED, PUNCH_SECONDS)
    other.kind_of(one, PUNCHED, PUNCH_SECONDS)
    assert {words["home"] for peer in (one, other) for words in peer.said if "home" in words} > {""}


@pytest.mark.slow
def test_homes_that_choose_ports_at_random_stay_relayed_and_hear_each_other(town: Town) -> None:
    town.settle(4)
    one, other = town.two_homes(Ports.FULLY_RANDOM)
    trying, far = sorted((one, other), key=lambda peer: peer.peer)
    trying.until(lambda words: words.get("tried") == far.name)
    for peer, far in ((one, other), (other, one)):
        peer.hears(far, since=time.monotonic())
        assert peer.last_kind_of(far) == RELAYED


def test_two_peers_of_one_home_talk_at_their_private_addresses(town: Town) -> None:
    town.public()
    home = town.home()
    one, other = town.at_home(home, 2), town.at_home(home, 3)
    one.kind_of(other, DIRECT)
    other.kind_of(one, DIRECT)


def test_a_relay_that_turns_public_after_the_homes_joined_is_asked_for_a_place_again(
    town: Town,
) -> None:
    """By its first neighbour outside its libp2p learns that it is public, and forgets all places.

    Nobody is told; there is no other relay to go to.
    """
    town.settle(1)
    one, other = town.two_homes()
    one.kind_of(other, RELAYED)
    turned = town.observer().until(lambda words: "address" in words)["at"]
    for peer, far in ((one, other), (other, one)):
        lost = peer.has_lost_relays(since=turned)
        again = peer.has_relays(1, since=lost["at"])
        assert peer.hears(far, since=again["at"])["at"] - turned <= BACK_SECONDS


def test_when_a_relay_dies_the_other_one_carries_on(town: Town) -> None:
    town.settle(2)
    one, other = town.two_homes()
    for peer in (one, other):
        peer.has_relays(2)
    one.kind_of(other, RELAYED)
    town.publics[1].kill()
    killed = time.monotonic()
    one.has_lost_relays(left=1, since=killed)
    assert one.last_kind_of(other) == RELAYED
    one.hears(other, since=time.monotonic())


def test_one_of_two_relays_that_dies_is_replaced_by_one_that_came_later(town: Town) -> None:
    town.settle(2)
    one, other = town.two_homes()
    for peer in (one, other):
        peer.has_relays(2)
    town.settle(1)
    killed = time.monotonic()
    town.publics[1].kill()
    for peer, far in ((one, other), (other, one)):
        lost = peer.has_lost_relays(left=1, since=killed)
        again = peer.has_relays(2, since=lost["at"])
        peer.hears(far, since=again["at"])
