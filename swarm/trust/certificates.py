"""Certificates: who may plan - in an open swarm its founder, and whom that certified in a chain.

A proof is the founder's public key, then one link for each peer down to the one that it proves:
its public key, until when it may plan, and the signature of the peer before it. Only the founder's
hash stands in the swarm's id, so whoever knows the id can check a proof; no other fact is needed.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from swarm.trust.identity import Identity, is_founder, peer_of_public_key, public_key_of, verify
from swarm.trust.network_clock import CLOCK

CERTIFICATE_SECONDS = 30 * 86400.0
DEPTH_CAP = 3  # links between the founder and a planner
KEY_BYTES = 32
LINK = struct.Struct("!32sQ64s")  # the peer's public key, wall-clock seconds, a signature
PROOF_CAP = KEY_BYTES + DEPTH_CAP * LINK.size
DOMAIN = b"swarm planner 1"
CHECKED = 4096  # proofs whose signatures are remembered to be good or bad


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
    until = int(now + CERTIFICATE_SECONDS)
    key = public_key_of(subject)
    signature = issuer.sign(_signed_bytes(swarm, depth, public_key_of(issuer.peer), key, until))
    return proof + LINK.pack(key, until, signature)


def depth_of(proof: bytes) -> int:
    """How many links a proof has; the founder's has none."""
    return (len(proof) - KEY_BYTES) // LINK.size


@lru_cache(CHECKED)
def proven_by(swarm: str, proof: bytes) -> tuple[str, float]:
    """Whom a proof proves, and until when on the wall clock; an empty id if it is not genuine."""
    if len(proof) > PROOF_CAP or len(proof) < KEY_BYTES or (len(proof) - KEY_BYTES) % LINK.size:
        return "", 0.0
    key, until = proof[:KEY_BYTES], math.inf
    if not is_founder(swarm, peer_of_public_key(key)):
        return "", 0.0
    links = LINK.iter_unpack(proof[KEY_BYTES:])
    for depth, (subject, seconds, signature) in enumerate(links, start=1):
        signed = _signed_bytes(swarm, depth, key, subject, seconds)
        if not verify(peer_of_public_key(key), signed, signature):
            return "", 0.0
        key, until = subject, min(until, float(seconds))
    return peer_of_public_key(key), until


def _signed_bytes(swarm: str, depth: int, issuer: bytes, subject: bytes, until: int) -> bytes:
    name = swarm.encode()
    return DOMAIN + struct.pack("!IBQ", len(name), depth, until) + name + issuer + subject
