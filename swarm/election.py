"""Election: the order of peers for the planner's office, and who holds it for one who only asks."""

import hashlib
from collections.abc import Iterable, Mapping

from swarm.certificates import PlannerTrust
from swarm.records import Lease

ERA_SECONDS = 3600.0  # after which the order is drawn anew


def weight_of(swarm: str, era: int, peer: str) -> bytes:
    """The peer's weight in an era: SHA-256 over swarm, era and peer id."""
    return hashlib.sha256(f"{swarm}\0{era}\0{peer}".encode()).digest()


def rank(swarm: str, era: int, peers: Iterable[str]) -> list[str]:
    """Peers by highest random weight, the first of them plans; equal for every observer."""
    return sorted(set(peers), key=lambda peer: (weight_of(swarm, era, peer), peer), reverse=True)


def lease_holders(leases: Mapping[str, Lease], trust: PlannerTrust, now: float) -> list[str]:
    """Who holds a live lease and may plan, the best in rank first; terms decide nothing here.

    Nodes rank all candidates that answer them, an asker those with a lease: the first that answers
    is the planner for both.
    """
    held = [
        peer
        for peer, lease in leases.items()
        if lease.until > now and trust.accepts(peer, lease.proof)
    ]
    return rank(trust.swarm, int(now // ERA_SECONDS), held)
