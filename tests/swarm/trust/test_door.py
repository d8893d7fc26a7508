"""Door: lists of peers hold for all that is of their machines, where machines are certified."""

import pytest

from swarm.trust.door import Door
from swarm.trust.identity import Identity
from swarm.trust.members import Machine, Members
from swarm.trust.peer_lists import PeerLists
from swarm.trust.register import Register
from tests.swarm.trust.machines import NOW, SWARM, One, founders_machine

HOST = founders_machine()
FRIEND, STRANGER = HOST.certified(), HOST.certified()
OWN = Identity.throwaway().peer


def members(one: One, peer: str = "") -> Members:
    machine = Machine(one.identity, one.holding)
    own = peer or Identity.throwaway().peer
    return Members(SWARM, own, machine, Register(SWARM), clock=lambda: NOW)


def shown_by(one: One) -> tuple[str, bytes]:
    """A new peer of a machine, and its pass."""
    made = members(one)
    return made._own.chain.subject, made.own_pass


@pytest.fixture
def node() -> tuple[str, bytes]:
    return shown_by(FRIEND)


def test_clients_of_a_machine_with_an_allowed_peer_come_in(node: tuple[str, bytes]) -> None:
    door = Door(OWN, PeerLists(allowed=[node[0]]).problem_with, members(HOST, OWN))
    assert door.admits(*node)
    client, stranger = shown_by(FRIEND), shown_by(STRANGER)
    assert door.problem_with(client[0]) == "", "it may show whose it is"
    assert door.admits(*client)
    assert door.problem_with(client[0]) == ""
    assert "allowed" in door.problem_of(*stranger)
    assert "allowed" in door.problem_with(stranger[0]), "known from now on"


def test_a_machine_can_be_named_itself() -> None:
    door = Door(OWN, PeerLists(allowed=[FRIEND.id]).problem_with, members(HOST, OWN))
    assert door.admits(*shown_by(FRIEND))
    assert not door.admits(*shown_by(STRANGER))


def test_a_ban_holds_for_every_peer_of_the_machine(node: tuple[str, bytes]) -> None:
    door = Door(OWN, PeerLists(banned=[node[0]]).problem_with, members(HOST, OWN))
    client = shown_by(FRIEND)
    assert door.admits(*client), "nobody knows yet that it is of the same machine"
    assert "banned" in door.problem_of(*node)
    door.members = members(HOST, OWN)
    assert door.members.problem_of(*node) == ""  # seen before it was banned
    assert "banned" in door.problem_of(*client)
    assert door.admits(*shown_by(STRANGER))


def test_without_certificates_lists_hold_for_ids() -> None:
    friend, other = Identity.throwaway().peer, Identity.throwaway().peer
    door = Door(OWN, PeerLists(allowed=[friend]).problem_with)
    assert door.admits(friend, b"")
    assert "allowed" in door.problem_with(other)
    assert door.admits(OWN, b"")
