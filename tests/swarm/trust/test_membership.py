"""Membership: only chains from the founder count, each link for what it was signed for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.trust.certificate_chain import LINK
from swarm.trust.certificates import extend_proof, founder_proof
from swarm.trust.identity import Identity, swarm_id
from swarm.trust.membership import certify, holding_of, pass_for, pass_of
from tests.swarm.trust.machines import FOUNDER, NOW, SWARM, One, founders_machine

HOST = founders_machine()
PEER = Identity.throwaway().peer
MEMBER = HOST.certified()
PASS = pass_for(SWARM, MEMBER.holding, MEMBER.identity, PEER, NOW).data


def test_the_founders_machine_delegates_and_members_are_told_apart() -> None:
    delegate = HOST.certified(as_delegate=True)
    member = delegate.certified()
    assert [each.holding.is_delegate for each in (HOST, delegate, member)] == [True, True, False]
    assert [each.holding.rank for each in (HOST, delegate, member)] == [1, 2, 3]
    assert member.holding.chain.peers == (FOUNDER.peer, HOST.id, delegate.id, member.id)


def test_a_pass_is_of_one_peer_and_names_its_machine() -> None:
    member = HOST.certified()
    shown = pass_for(SWARM, member.holding, member.identity, PEER, NOW)
    assert (shown.chain.subject, shown.machine) == (PEER, member.id)
    assert not shown.is_of_delegate
    assert pass_for(SWARM, HOST.holding, HOST.identity, PEER, NOW).is_of_delegate
    assert pass_of(SWARM, shown.data) == shown


def test_a_member_certifies_nobody_but_its_own_peers() -> None:
    member = HOST.certified()
    with pytest.raises(ValueError, match="only delegates"):
        certify(SWARM, member.issuer, One().id, NOW, as_delegate=False)
    shown = pass_for(SWARM, member.holding, member.identity, PEER, NOW).data
    assert holding_of(SWARM, shown) is None, "a node's pass is no machine's holding"
    for delegates in range(5):
        forged = bytes([delegates]) + shown[1:]
        assert pass_of(SWARM, forged) is None or delegates == shown[0]
        assert holding_of(SWARM, forged) is None


def test_delegates_end_two_steps_from_the_founder() -> None:
    delegate = HOST.certified(as_delegate=True)
    with pytest.raises(ValueError, match="at most 2 steps"):
        delegate.certified(as_delegate=True)


def test_a_planners_certificate_makes_nobody_a_member() -> None:
    proof = extend_proof(SWARM, founder_proof(SWARM, FOUNDER.peer), FOUNDER, PEER, NOW)
    for delegates in range(3):
        assert pass_of(SWARM, bytes([delegates]) + proof) is None
        assert holding_of(SWARM, bytes([delegates]) + proof) is None


def test_a_chain_counts_in_its_own_swarm_only() -> None:
    other = swarm_id("other", FOUNDER.peer)
    assert holding_of(SWARM, HOST.holding.data)
    assert holding_of(other, HOST.holding.data) is None
    stranger = Identity.throwaway()
    assert holding_of(swarm_id("home", stranger.peer), HOST.holding.data) is None


def test_nothing_holds_longer_than_what_is_above_it() -> None:
    member = HOST.certified()
    shown = pass_for(SWARM, member.holding, member.identity, PEER, NOW + 364 * 86400)
    assert shown.chain.until == member.holding.chain.until


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 1 + 32 + 3 * LINK.size - 1), st.integers(1, 255))
def test_one_changed_byte_spoils_a_pass(at: int, change: int) -> None:
    data = bytearray(PASS)
    data[at % len(data)] ^= change
    assert pass_of(SWARM, bytes(data)) is None


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=600))
def test_no_bytes_of_a_stranger_are_a_pass_or_a_holding(data: bytes) -> None:
    assert pass_of(SWARM, data) is None
    assert holding_of(SWARM, data) is None
