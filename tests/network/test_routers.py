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
MUCH_BYTES, FRAME_BYTES, MUCH_SECONDS = 160_000_000, 1_000_000, 240.0
FEW = 100  # frames, and bytes of each
FAR_SECONDS, MOVED_SECONDS = 0.15, 120.0  # one way between two homes; on a busy machine
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
    homes = [peer.until(lambda words: words.get("home"))["home"] for peer in (one, other)]
    assert homes[0] != homes[1]


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


@pytest.mark.slow
def test_a_relay_carries_much_without_a_reset(town: Town) -> None:
    """One that knows itself to be public; at first libp2p lets 128 KiB through."""
    town.settle(2)
    one, other = town.two_homes(Ports.FULLY_RANDOM)
    one.kind_of(other, RELAYED)
    one.send(other, frames=MUCH_BYTES // FRAME_BYTES, size=FRAME_BYTES)
    got = other.until(lambda words: words.get("of") == one.name, MUCH_SECONDS)
    assert got["got"] == MUCH_BYTES
    assert [words["over"] for words in one.said if "sends" in words] == [RELAYED]
    for peer in (one, other):
        assert not peer.faults()


@pytest.mark.slow
def test_a_stream_opened_through_a_relay_moves_to_the_direct_connection(lab: Laboratory) -> None:
    """Its opening is the first call, upon which libp2p punches a hole; far away that takes long."""
    wire = lab.wire("11.0.0")
    with town_in(lab, wire) as town:
        town.settle(5)
        homes = [town.home() for _ in range(2)]
        wire.between(*(home.address for home in homes), delay_seconds=FAR_SECONDS)
        one, other = (town.at_home(home, is_shy=True) for home in homes)
        for peer in (one, other):
            peer.has_relays(1)
            for public in town.publics:  # by which libp2p knows how it looks from outside
                peer.kind_of(public, DIRECT)
        one.knows(other)
        hung_up = time.monotonic()
        one.send(other, frames=FEW, size=FEW, pause_seconds=0.02, counts_direct=True, afresh=True)
        got = other.until(lambda words: words.get("of") == one.name, MOVED_SECONDS)
        assert got["got"] == FEW * got["frames"] > FEW * FEW
        assert [words["over"] for words in one.said if "sends" in words] == [RELAYED, DIRECT]
        for peer in (one, other):
            assert not peer.faults(since=hung_up)


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
