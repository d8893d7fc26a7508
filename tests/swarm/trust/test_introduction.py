"""Introductions: a client is whose node's who signed for it, for a while, in this swarm alone."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.errors import BadInput
from swarm.trust.door import Door
from swarm.trust.identity import Identity
from swarm.trust.introduction import (
    INTRODUCED_SECONDS,
    NODES_CAP,
    Introductions,
    introduced_by,
    introduction_of,
    nodes_of,
)
from swarm.trust.peer_lists import PeerLists

NOW, SWARM = 1.8e9, "forest-abcdefgh"
OWN, CLIENT = Identity.throwaway().peer, Identity.throwaway().peer
NODE = Identity.throwaway()
SHOWN = introduction_of(SWARM, CLIENT, [NODE], NOW)


def test_it_names_every_node_that_signed_and_nobody_else() -> None:
    nodes = [Identity.throwaway() for _ in range(NODES_CAP + 1)]
    shown = introduction_of(SWARM, CLIENT, nodes, NOW)
    assert introduced_by(SWARM, CLIENT, shown, NOW) == {n.peer for n in nodes[:NODES_CAP]}
    assert introduced_by(SWARM, CLIENT, b"", NOW) == frozenset()


def test_it_serves_one_client_in_one_swarm_for_a_while() -> None:
    assert introduced_by(SWARM, CLIENT, SHOWN, NOW + INTRODUCED_SECONDS - 1)
    for swarm, client, now in (
        ("other-abcdefgh", CLIENT, NOW),
        (SWARM, Identity.throwaway().peer, NOW),
        (SWARM, CLIENT, NOW + INTRODUCED_SECONDS + 1),
    ):
        assert introduced_by(swarm, client, SHOWN, now) == frozenset()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255), st.binary(max_size=600))
def test_what_is_changed_or_made_up_introduces_nobody(at: int, change: int, junk: bytes) -> None:
    data = bytearray(SHOWN)
    data[at % len(data)] ^= change
    assert introduced_by(SWARM, CLIENT, bytes(data), NOW) == frozenset()
    assert introduced_by(SWARM, CLIENT, junk, NOW) == frozenset()


def guarded(lists: PeerLists) -> Door:
    """The door of a host in an open swarm."""
    return Door(OWN, lists.problem_with, None, Introductions(SWARM, clock=lambda: NOW))


def test_a_client_that_an_allowed_node_introduces_comes_in_and_no_other() -> None:
    door = guarded(PeerLists(allowed=[NODE.peer]))
    other = Identity.throwaway().peer
    assert door.problem_at_first(CLIENT) == "", "it may say whose it is"
    assert "allowed" in door.problem_with(CLIENT), "we do not turn to it"
    assert "allowed" in door.problem_of(CLIENT, b"")
    assert door.admits(CLIENT, SHOWN)
    assert door.problem_with(CLIENT) == "", "from now on"
    assert not door.admits(other, SHOWN)
    stranger = introduction_of(SWARM, other, [Identity.throwaway()], NOW)
    assert not door.admits(other, stranger)


def test_clients_of_a_banned_node_that_introduce_themselves_are_banned() -> None:
    door = guarded(PeerLists(banned=[NODE.peer]))
    assert door.admits(CLIENT, b"")
    assert "banned" in door.problem_of(CLIENT, SHOWN)
    assert "banned" in door.problem_at_first(CLIENT)


def test_only_the_latest_introductions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.trust.introduction.KNOWN_CAP", 2)
    known = Introductions(SWARM, clock=lambda: NOW)
    peers = [Identity.throwaway().peer for _ in range(3)]
    for peer in peers:
        known.hear(peer, introduction_of(SWARM, peer, [NODE], NOW))
    assert [known.kin_of(peer) for peer in peers] == [frozenset(), *[frozenset({NODE.peer})] * 2]


def test_nodes_are_those_that_have_run_with_the_state_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No node has run with the state folder"):
        nodes_of(tmp_path)
    running = Identity.load_or_create(tmp_path / "node-1")
    assert [each.peer for each in nodes_of(tmp_path)] == [running.peer], "though it is locked"
    running.close()
