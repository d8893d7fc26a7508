"""Peers behind kernel NATs: direct where a hole can be punched, relayed and well where not.

The peers hold no model, so that a machine with few cores can carry many of them; they do all that
a node does about its way to the others.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.checkpoint.folder import read_spec
from swarm.hardware import DIRECT, PUNCHED, RELAYED
from tests.network.conftest import model_of
from tests.network.homes import Ports
from tests.network.hosted_swarm import swarm_on
from tests.network.laboratory import Laboratory
from tests.network.town import PORT, Town, town_in
from tests.whole.reference_model import expected
from tests.whole.swarms import Nodes, Part, shard_bytes

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


LONG_TEXT, MANY = "Once upon a time " * 40, 160  # more bytes than a relay's first limit lets pass


@pytest.mark.slow
@pytest.mark.nodes
def test_one_public_host_and_two_homes_serve_through_a_relay_that_cuts(
    lab: Laboratory, nodes: Nodes, tmp_path: Path
) -> None:
    """The commonest swarm; its relay ends each circuit after 128 KiB, and no token is lost."""
    model = model_of(tmp_path / "model", layers=4)
    spec = read_spec(model, str(model))
    half = shard_bytes(spec, 2, spec.kv_heads, spec.mlp_blocks, ends=1)
    outer, hosts = lab.network("11.0.0"), [lab.host(name) for name in ("founder", "one", "two")]
    lab.attach(hosts[0], outer, 10)
    for number, host in enumerate(hosts[1:], 1):
        lab.attach(host, lab.home(f"home{number}", outer, 100 + number).network, 2)
    parts = [Part("founder", half // 40), Part("one", half), Part("two", half)]
    swarm = swarm_on(hosts, parts, nodes, model, [("--port", str(PORT))] * 3)
    swarm.wait_until_ready(1, 2)
    for node in swarm.nodes[1:]:
        assert "joins through relay" in node.line("reach: not reachable from outside")
    asking = swarm.ask_from(hosts[0], MANY, LONG_TEXT)
    assert asking.ids() == expected(LONG_TEXT, MANY, model)
