"""Election policy: what a node does about the planner's lease; a pure function of facts."""

from dataclasses import dataclass

from swarm.election import LEASE_SECONDS, may_act

RENEW_SECONDS = 4.0
SETTLE_SECONDS = 1.0  # between claiming and acting, so that a better claim can be seen
JITTER_SECONDS = 2.0  # the next in rank waits so much longer before it claims
PATIENCE_CAP_SECONDS = 15.0  # whoever stands before it


@dataclass(frozen=True, slots=True)
class Holder:
    """A live lease: who holds it, under which term, and the holder's place among candidates."""

    peer: str
    term: int
    rank: int

    @property
    def order(self) -> tuple[int, int]:
        """The higher one wins: better rank, then later term. A term alone never wins a lease."""
        return -self.rank, self.term


@dataclass(frozen=True, slots=True)
class ElectionFacts:
    """What a node knows when it asks itself whether it should plan; times are monotonic."""

    me: str
    now: float
    rank: int | None  # our place among the candidates; None = we are none, or may not plan
    holders: tuple[Holder, ...]  # live leases of peers that may plan and answer, ours left out
    term: int  # highest credible term seen
    claimed_at: float | None  # when we claimed; None = we hold no lease
    confirmed_at: float  # when our last confirmed renewal was sent
    vacant_since: float  # since when no other holder has been seen


@dataclass(frozen=True, slots=True)
class StandBy:
    """Another plans, or nobody yet."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Publish a lease under this term."""

    term: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Publish our lease again."""


@dataclass(frozen=True, slots=True)
class Act:
    """We hold the lease and nobody has a better one: plan."""


@dataclass(frozen=True, slots=True)
class Yield:
    """We held the lease; stop acting."""


ElectionDuty = StandBy | Claim | Renew | Act | Yield


def next_election_duty(facts: ElectionFacts, own_term: int) -> ElectionDuty:
    """What to do about the planner's lease now."""
    if facts.claimed_at is not None:
        return _as_holder(facts, own_term)
    if facts.holders or facts.rank is None:
        return StandBy()
    patience = min(SETTLE_SECONDS + facts.rank * JITTER_SECONDS, PATIENCE_CAP_SECONDS)
    return Claim(facts.term + 1) if facts.now - facts.vacant_since >= patience else StandBy()


def _as_holder(facts: ElectionFacts, own_term: int) -> ElectionDuty:
    assert facts.claimed_at is not None
    rank = facts.rank if facts.rank is not None else len(facts.holders) + 1
    own = Holder(facts.me, own_term, rank)
    beaten = any(holder.order > own.order for holder in facts.holders)
    if beaten or not may_act(facts.now, facts.confirmed_at, LEASE_SECONDS):
        return Yield()
    if facts.now - facts.confirmed_at >= RENEW_SECONDS:
        return Renew()
    return Act() if facts.now - facts.claimed_at >= SETTLE_SECONDS else StandBy()
