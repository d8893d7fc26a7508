"""Certificates: the founder proves itself, a chain of three proves a planner, nothing else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.records import RECORD_CAP
from swarm.trust.certificates import (
    CERTIFICATE_SECONDS,
    DEPTH_CAP,
    PROOF_CAP,
    PlannerTrust,
    depth_of,
    extend_proof,
    founder_proof,
    proven_by,
)
from swarm.trust.identity import Identity, swarm_id

NOW = 1.7e9
FOUNDER, ANNA, BERT, CARL, DORA = (Identity.throwaway() for _ in range(5))
SWARM = swarm_id("tiny", FOUNDER.peer)
TRUST = PlannerTrust(SWARM, is_private=False, clock=lambda: NOW)


def chain(*peers: Identity, swarm: str = SWARM) -> bytes:
    """The proof of the last of these peers, each certified by the one before it."""
    proof = founder_proof(swarm, FOUNDER.peer)
    for issuer, subject in zip((FOUNDER, *peers), peers, strict=False):
        proof = extend_proof(swarm, proof, issuer, subject.peer, NOW)
    return proof


CHAIN = chain(ANNA, BERT, CARL)


def test_the_founder_of_a_swarm_proves_itself_and_nobody_else_does() -> None:
    proof = founder_proof(SWARM, FOUNDER.peer)
    assert TRUST.accepts(FOUNDER.peer, proof)
    assert not TRUST.accepts(ANNA.peer, proof)
    assert founder_proof(SWARM, ANNA.peer) == b""
    assert not TRUST.accepts(ANNA.peer, b"")


@pytest.mark.parametrize("peers", [(ANNA,), (ANNA, BERT), (ANNA, BERT, CARL)])
def test_a_chain_proves_its_last_peer_for_thirty_days(peers: tuple[Identity, ...]) -> None:
    proof = chain(*peers)
    assert proven_by(SWARM, proof) == (peers[-1].peer, NOW + CERTIFICATE_SECONDS)
    assert TRUST.accepts(peers[-1].peer, proof)
    assert not TRUST.accepts(FOUNDER.peer, proof)
    assert depth_of(proof) == len(peers)
    later = PlannerTrust(SWARM, is_private=False, clock=lambda: NOW + CERTIFICATE_SECONDS + 1)
    assert not later.accepts(peers[-1].peer, proof)


def test_a_chain_is_as_long_lived_as_its_shortest_link() -> None:
    old = extend_proof(
        SWARM, founder_proof(SWARM, FOUNDER.peer), FOUNDER, ANNA.peer, NOW - CERTIFICATE_SECONDS / 2
    )
    proof = extend_proof(SWARM, old, ANNA, BERT.peer, NOW)
    assert TRUST.seconds_left(BERT.peer, proof) == CERTIFICATE_SECONDS / 2


def test_a_chain_ends_after_three_links_and_fits_into_a_record() -> None:
    with pytest.raises(ValueError, match=f"at most {DEPTH_CAP} links"):
        extend_proof(SWARM, CHAIN, CARL, DORA.peer, NOW)
    assert len(CHAIN) == PROOF_CAP < RECORD_CAP / 4


def test_who_may_not_plan_certifies_nobody() -> None:
    with pytest.raises(ValueError, match="only who may plan"):
        extend_proof(SWARM, chain(ANNA), BERT, CARL.peer, NOW)
    with pytest.raises(ValueError, match="only who may plan"):
        extend_proof(SWARM, b"", BERT, CARL.peer, NOW)


def test_a_proof_holds_in_its_own_swarm_only() -> None:
    other = swarm_id("other", FOUNDER.peer)
    assert proven_by(other, chain(ANNA))[0] == ""
    assert proven_by(other, chain(ANNA, swarm=other))[0] == ANNA.peer


def test_a_link_moved_to_another_place_proves_nothing() -> None:
    head, links = CHAIN[:32], [CHAIN[32 + n * 104 :][:104] for n in range(3)]
    for moved in ([links[1]], [links[0], links[2]], [links[1], links[0]], links[::-1]):
        assert proven_by(SWARM, head + b"".join(moved)) == ("", 0.0)


@given(st.integers(0, len(CHAIN) - 1), st.integers(1, 255))
def test_a_proof_with_one_byte_changed_proves_nothing(at: int, change: int) -> None:
    forged = bytearray(CHAIN)
    forged[at] ^= change
    assert not TRUST.accepts(CARL.peer, bytes(forged))


@given(st.binary(max_size=PROOF_CAP + 64))
def test_arbitrary_bytes_prove_nothing_and_raise_nothing(proof: bytes) -> None:
    assert proven_by(SWARM, proof) == ("", 0.0)


def test_every_member_of_a_private_swarm_may_plan() -> None:
    assert PlannerTrust(SWARM, is_private=True).accepts(ANNA.peer, b"")
