"""Election: who plans and for how long, and which of two plans is the later one; pure."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, total_ordering

from swarm.records import Capability, Lease, PlanRef
from swarm.trust.certificates import PlannerTrust

ERA_SECONDS = 3600.0  # after which the order of peers is drawn anew
LEASE_SECONDS = 15.0
SKEW_SECONDS = 3.0  # clocks may differ by this much
TERM_JUMP = 64  # a term further above the verified one than this is neither believed nor kept
WEIGHTS_REMEMBERED = 4096  # of peers, which are ranked again and again
COMMON_TERM_CAP = 2**32  # who was away for long catches up with the others as far as this


@lru_cache(WEIGHTS_REMEMBERED)
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


def covered_plan(
    references: Mapping[str, PlanRef], planner: str, lease_term: int
) -> PlanRef | None:
    """The plan that a planner offers, unless its term is above that of the planner's lease."""
    reference = references.get(planner)
    return reference if reference and reference.term <= lease_term else None


def candidates(
    now: float, capabilities: Mapping[str, Capability], heartbeat_seconds: float
) -> list[str]:
    """Peers that may plan at wall-clock second `now`, sorted by id.

    Live, directly reachable and older than two heartbeats; in a swarm younger than that, whoever
    is reachable. Where all peers stand behind routers the same goes for all: a planner's words pass
    through relays as well as others.
    """
    live = [(peer, c) for peer, c in capabilities.items() if not c.leaving]
    reachable = [(peer, c) for peer, c in live if c.reachable] or live
    youngest = now - 2 * heartbeat_seconds
    settled = [(peer, c) for peer, c in reachable if c.since <= youngest]
    return sorted(peer for peer, _ in settled or reachable)


def may_act(
    now_monotonic: float,
    confirmed_monotonic: float,
    lease_seconds: float = LEASE_SECONDS,
    skew_seconds: float = SKEW_SECONDS,
) -> bool:
    """Whether a planner still holds its lease, by its own monotonic clock since the last renewal.

    `confirmed_monotonic` is when the last confirmed renewal was *sent*.
    """
    return 0 <= now_monotonic - confirmed_monotonic < lease_seconds - skew_seconds


def is_credible(term: int, verified: int) -> bool:
    """Whether a term seen on the board may follow the highest verified one."""
    return 0 <= term <= verified + TERM_JUMP


@total_ordering
@dataclass(frozen=True, slots=True)
class PlanOrder:
    """Which plan is later: higher term, then better (lower) rank, then higher digest."""

    term: int
    rank: int
    digest: str

    def __post_init__(self) -> None:
        if self.term < 0 or self.rank < 0:
            raise ValueError("term and rank of a plan cannot be negative")

    def __lt__(self, other: "PlanOrder") -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[int, int, str]:
        return self.term, -self.rank, self.digest
