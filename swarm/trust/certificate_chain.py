"""Certificate chains: the founder's public key, then a signed link for each peer after it.

Only the founder's hash stands in a swarm's id, so whoever knows the id can check a chain; no other
fact is needed. What a link allows follows from the domain that its issuer signs under.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from swarm.trust.identity import Identity, is_founder, peer_of_public_key, public_key_of, verify

KEY_BYTES = 32
LINK = struct.Struct("!32sQ64s")  # the subject's public key, wall-clock seconds, a signature
LINKS_CAP = 4
CHECKED = 4096  # chains whose signatures are remembered to be good or bad


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that is genuine: whom it leads to, from the founder on, and until when it holds."""

    peers: tuple[str, ...]
    until: float  # wall-clock seconds; without end for the founder alone

    @property
    def subject(self) -> str:
        """Whom it proves."""
        return self.peers[-1]


def links_in(chain: bytes) -> int:
    """How many links a chain has; -1 if it cannot be one."""
    links, rest = divmod(len(chain) - KEY_BYTES, LINK.size)
    return links if 0 <= links <= LINKS_CAP and not rest else -1


@lru_cache(CHECKED)
def read_chain(swarm: str, chain: bytes, domains: tuple[bytes, ...]) -> Chain | None:
    """The chain if it is genuine, with just one link under each domain; None if it is not."""
    if links_in(chain) != len(domains):
        return None
    key, until = chain[:KEY_BYTES], math.inf
    peers = [peer_of_public_key(key)]
    if not is_founder(swarm, peers[0]):
        return None
    links = LINK.iter_unpack(chain[KEY_BYTES:])
    for depth, (domain, link) in enumerate(zip(domains, links, strict=True), start=1):
        subject, seconds, signature = link
        signed = _signed_bytes(domain, swarm, (depth, seconds), key, subject)
        if not verify(peers[-1], signed, signature):
            return None
        key, until = subject, min(until, float(seconds))
        peers.append(peer_of_public_key(key))
    return Chain(tuple(peers), until)


def add_link(
    chain: bytes, domain: bytes, swarm: str, issuer: Identity, subject: str, until: float
) -> bytes:
    """The chain with one more link, which its last peer signs."""
    depth, seconds, key = links_in(chain) + 1, int(until), public_key_of(subject)
    own = public_key_of(issuer.peer)
    signature = issuer.sign(_signed_bytes(domain, swarm, (depth, seconds), own, key))
    return chain + LINK.pack(key, seconds, signature)


def _signed_bytes(
    domain: bytes, swarm: str, numbers: Sequence[int], issuer: bytes, subject: bytes
) -> bytes:
    """Canonical: every part has a length of its own or that of its kind."""
    name, (depth, until) = swarm.encode(), numbers
    return domain + struct.pack("!IBQ", len(name), depth, until) + name + issuer + subject
