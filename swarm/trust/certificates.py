"""Certificates: who may plan - in an open swarm its founder, and whom that certified in a chain.

A proof is the founder's public key, then one link for each peer down to the one that it proves:
its public key, until when it may plan, and the signature of the peer before it. Only the founder's
hash stands in the swarm's id, so whoever knows the id can check a proof; no other fact is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass

from swarm.trust.certificate_chain import KEY_BYTES, LINK, add_link, links_in, read_chain
from swarm.trust.identity import Identity, is_founder, public_key_of
from swarm.trust.network_clock import CLOCK

CERTIFICATE_SECONDS = 30 * 86400.0
DEPTH_CAP = 3  # links between the founder and a planner
PROOF_CAP = KEY_BYTES + DEPTH_CAP * LINK.size
DOMAIN = b"swarm planner 1"


@dataclass(frozen=True, slots=True)
class PlannerTrust:
    """Which peers of a swarm may plan: all members of a private one, else those with a proof."""

    swarm: str
    is_private: bool
    clock: Callable[[], float] = CLOCK.now

    def accepts(self, peer: str, proof: bytes) -> bool:
        """Whether a peer that shows this proof may plan now."""
        return self.is_private or self.seconds_left(peer, proof) > 0

    def seconds_left(self, peer: str, proof: bytes) -> float:
        """How long a proof holds for a peer from now on; 0 if it proves nothing."""
        subject, until = proven_by(self.swarm, proof)
        return max(0.0, until - self.clock()) if subject == peer else 0.0


def founder_proof(swarm: str, peer: str) -> bytes:
    """The proof of a swarm's founder; empty for any other peer."""
    return public_key_of(peer) if is_founder(swarm, peer) else b""


def extend_proof(swarm: str, proof: bytes, issuer: Identity, subject: str, now: float) -> bytes:
    """Certify `subject` with the issuer's own proof; raises ValueError if that cannot go on."""
    if proven_by(swarm, proof)[0] != issuer.peer:
        raise ValueError("only who may plan certifies others")
    depth = depth_of(proof) + 1
    if depth > DEPTH_CAP:
        raise ValueError(f"a chain of certificates has at most {DEPTH_CAP} links")
    return add_link(proof, DOMAIN, swarm, issuer, subject, now + CERTIFICATE_SECONDS)


def depth_of(proof: bytes) -> int:
    """How many links a proof has; the founder's has none."""
    return (len(proof) - KEY_BYTES) // LINK.size


def proven_by(swarm: str, proof: bytes) -> tuple[str, float]:
    """Whom a proof proves, and until when on the wall clock; an empty id if it is not genuine."""
    links = links_in(proof)
    chain = read_chain(swarm, proof, (DOMAIN,) * links) if 0 <= links <= DEPTH_CAP else None
    return (chain.subject, chain.until) if chain else ("", 0.0)
