"""What to do next, for the election and for a device: pure functions, and a world of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.control.election_policy import (
    JITTER_SECONDS,
    PATIENCE_CAP_SECONDS,
    RENEW_SECONDS,
    SETTLE_SECONDS,
    Act,
    Claim,
    ElectionFacts,
    Holder,
    Renew,
    StandBy,
    Yield,
    next_election_duty,
)
from node.device.shard_policy import (
    ALIKE,
    BACK_OFF_SECONDS,
    LOAD_SECONDS,
    Drop,
    Keep,
    Lead,
    ShardFacts,
    next_shard_duty,
)
from swarm.election import LEASE_SECONDS, SKEW_SECONDS
from swarm.plan import Assignment, Shard, Stage

FREE = ElectionFacts("me", 100.0, 0, (), 7, None, 0.0, vacant_since=0.0)
HELD = replace(FREE, claimed_at=90.0, confirmed_at=99.0)
LEASE_LEFT = LEASE_SECONDS - SKEW_SECONDS

# ---------------------------------------------------------------- who plans


def test_the_first_in_rank_claims_a_vacant_lease_with_a_higher_term() -> None:
    assert next_election_duty(FREE, 0) == Claim(8)


def test_nobody_claims_while_another_holds_the_lease() -> None:
    facts = replace(FREE, holders=(Holder("other", 1, 5),))
    assert next_election_duty(facts, 0) == StandBy()


def test_a_peer_that_is_no_candidate_never_claims() -> None:
    assert next_election_duty(replace(FREE, rank=None), 0) == StandBy()


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 200))
def test_the_better_rank_claims_first(one: int, other: int, vacant: float) -> None:
    low, high = min(one, other), max(one, other)
    duties = [
        next_election_duty(replace(FREE, rank=rank, now=vacant, vacant_since=0.0), 0)
        for rank in (low, high)
    ]
    assert not (duties[0] == StandBy() and isinstance(duties[1], Claim))
    patience = min(SETTLE_SECONDS + low * JITTER_SECONDS, PATIENCE_CAP_SECONDS)
    assert (duties[0] == Claim(8)) == (vacant >= patience)


def test_a_holder_settles_before_it_acts() -> None:
    facts = replace(HELD, claimed_at=100.0, confirmed_at=100.0)
    assert next_election_duty(facts, 8) == StandBy()
    assert next_election_duty(replace(facts, now=100.0 + SETTLE_SECONDS), 8) == Act()


def test_a_holder_renews_in_time() -> None:
    assert next_election_duty(replace(HELD, now=99.0 + RENEW_SECONDS), 8) == Renew()
    assert RENEW_SECONDS < LEASE_LEFT / 2


@pytest.mark.parametrize("term", [1, 8, 9, 1000])
def test_a_holder_yields_to_a_better_rank_under_whatever_term(term: int) -> None:
    better = Holder("other", term, 0)
    assert next_election_duty(replace(HELD, rank=1, holders=(better,)), 8) == Yield()


def test_a_holder_does_not_yield_to_a_worse_rank_under_whatever_term() -> None:
    worse = (Holder("one", 7, 2), Holder("other", 1000, 3))
    assert next_election_duty(replace(HELD, rank=1, holders=worse), 8) == Act()


def test_among_equals_in_rank_the_later_term_wins() -> None:
    later = Holder("other", 9, 5)
    assert next_election_duty(replace(HELD, rank=5, holders=(later,)), 8) == Yield()
    assert next_election_duty(replace(HELD, rank=5, holders=(replace(later, term=7),)), 8) == Act()


@given(
    now=st.floats(0, 1e4),
    confirmed=st.floats(0, 1e4),
    claimed=st.floats(0, 1e4),
    rank=st.none() | st.integers(0, 9),
)
def test_nobody_acts_after_the_lease_minus_the_skew(
    now: float, confirmed: float, claimed: float, rank: int | None
) -> None:
    facts = replace(FREE, now=now, rank=rank, claimed_at=claimed, confirmed_at=confirmed)
    duty = next_election_duty(facts, 8)
    if isinstance(duty, Act | Renew):
        assert 0 <= now - confirmed < LEASE_LEFT
    elif now - confirmed >= LEASE_LEFT:
        assert duty == Yield()


holders = st.lists(
    st.builds(Holder, st.sampled_from(["a", "b", "c"]), st.integers(0, 12), st.integers(0, 4)),
    max_size=3,
)


@given(holders, st.integers(0, 12), st.integers(0, 4))
def test_a_holder_acts_only_if_nobody_has_a_better_lease(
    others: list[Holder], term: int, rank: int
) -> None:
    facts = replace(HELD, rank=rank, holders=tuple(others))
    acts = isinstance(next_election_duty(facts, term), Act | Renew)
    assert acts == all((-each.rank, each.term) <= (-rank, term) for each in others)


# ---------------------------------------------------------------- a world of holders


@dataclass
class Candidate:
    """One node of a world in which everybody sees every lease at once."""

    rank: int
    term: int = 0
    claimed_at: float | None = None
    confirmed_at: float = 0.0
    vacant_since: float = 0.0
    acts: bool = False

    def holds(self, now: float) -> bool:
        return self.claimed_at is not None and now - self.confirmed_at < LEASE_SECONDS

    def look(self, now: float, world: Sequence["Candidate"]) -> None:
        others = tuple(
            Holder(str(each.rank), each.term, each.rank)
            for each in world
            if each is not self and each.holds(now)
        )
        self.vacant_since = now if others else self.vacant_since
        seen = max(each.term for each in world)
        facts = ElectionFacts(
            str(self.rank),
            now,
            self.rank,
            others,
            seen,
            self.claimed_at,
            self.confirmed_at,
            self.vacant_since,
        )
        duty = next_election_duty(facts, self.term)
        self.acts = isinstance(duty, Act | Renew)
        if isinstance(duty, Claim):
            self.term, self.claimed_at, self.confirmed_at = duty.term, now, now
        elif isinstance(duty, Renew):
            self.confirmed_at = now
        elif isinstance(duty, Yield):
            self.claimed_at = None


looks = st.lists(
    st.tuples(st.integers(0, 3), st.floats(0.0, 2.0), st.booleans()), min_size=30, max_size=120
)


@given(looks)
def test_two_holders_never_act_under_equal_terms(looks: list[tuple[int, float, bool]]) -> None:
    world = [Candidate(rank) for rank in range(4)]
    now = 0.0
    for number, pause, renews_late in looks:
        now += pause + (LEASE_SECONDS if renews_late and pause > 1.9 else 0.0)
        world[number].look(now, world)
        acting = [each for each in world if each.acts and each.holds(now)]
        terms = [each.term for each in acting]
        assert len(terms) == len(set(terms))


def test_one_candidate_ends_up_acting_and_keeps_its_lease() -> None:
    world = [Candidate(rank) for rank in range(4)]
    acting: list[list[int]] = []
    for tick in range(400):
        for each in world:
            each.look(tick * 0.5, world)
        acting.append([each.rank for each in world if each.acts])
    assert acting[20:] == [[0]] * 380
    assert world[0].term == 1


def test_the_next_in_rank_follows_a_dead_holder_within_its_lease() -> None:
    world = [Candidate(rank) for rank in range(3)]
    for tick in range(20):
        for each in world:
            each.look(tick * 0.5, world)
    dead, *rest = world
    died = 10.0
    for tick in range(40):
        now = died + tick * 0.5
        for each in rest:
            each.look(now, world)
        if rest[0].acts:
            break
    assert rest[0].acts
    assert rest[0].term == dead.term + 1
    assert now - died <= LEASE_SECONDS + 2 * SETTLE_SECONDS + JITTER_SECONDS + 1


# ---------------------------------------------------------------- what a device holds

STAGE = Stage(0, 3, (Shard("me/0", 5, 5), Shard("you/0", 3, 3)))
LEADS, FOLLOWS = Assignment(STAGE, 0), Assignment(STAGE, 1)
OTHER = Assignment(Stage(3, 8, (Shard("me/0", 8, 8),)), 0)
IDLE = ShardFacts(100.0, None, None, ready=False, since=0.0, failures=0)


def test_a_leader_gathers_its_group_and_a_follower_waits_to_be_called() -> None:
    assert next_shard_duty(replace(IDLE, assigned=LEADS)) == Lead(LEADS)
    assert next_shard_duty(replace(IDLE, assigned=FOLLOWS)) == Keep()
    assert next_shard_duty(IDLE) == Keep()


@pytest.mark.parametrize(
    ("assigned", "ready"), [(None, False), (OTHER, False), (OTHER, True), (FOLLOWS, True)]
)
def test_a_shard_is_dropped_before_another_is_loaded_and_a_load_that_no_plan_wants(
    assigned: Assignment | None, ready: bool
) -> None:
    facts = replace(IDLE, held=LEADS, assigned=assigned, ready=ready)
    assert next_shard_duty(facts) == Drop()


@pytest.mark.parametrize("held", [LEADS, FOLLOWS])
def test_a_shard_that_serves_is_kept_beside_a_plan_that_has_nothing_else_for_its_device(
    held: Assignment,
) -> None:
    assert next_shard_duty(replace(IDLE, held=held, ready=True)) == Keep()


@pytest.mark.parametrize("assigned", [None, OTHER, FOLLOWS])
def test_a_shard_that_serves_is_kept_if_a_plan_has_taken_one_lately(
    assigned: Assignment | None,
) -> None:
    facts = replace(IDLE, held=LEADS, assigned=assigned, ready=True, protected=True)
    assert next_shard_duty(facts) == Keep()
    assert next_shard_duty(replace(facts, ready=False)) == Drop()


def test_a_shard_as_planned_is_kept() -> None:
    assert next_shard_duty(replace(IDLE, held=LEADS, assigned=LEADS, ready=True)) == Keep()
    assert next_shard_duty(replace(IDLE, held=LEADS, assigned=LEADS, since=99.0)) == Keep()


def test_a_load_that_takes_too_long_is_dropped() -> None:
    facts = replace(IDLE, held=LEADS, assigned=LEADS, now=LOAD_SECONDS + 1)
    assert next_shard_duty(facts) == Drop()
    assert next_shard_duty(replace(facts, ready=True)) == Keep()


@given(st.integers(0, 20), st.floats(0, 60))
def test_failures_in_a_row_are_tried_again_ever_later_but_never_given_up(
    failures: int, waited: float
) -> None:
    facts = replace(IDLE, assigned=LEADS, now=waited, failures=failures)
    pause = BACK_OFF_SECONDS * min(failures, 8)
    assert next_shard_duty(facts) == (Lead(LEADS) if waited >= pause else Keep())
    assert pause <= 16


@given(st.integers(0, 40), st.floats(0, 2000))
def test_a_shard_that_fails_for_one_cause_again_and_again_is_tried_ever_more_rarely(
    alike: int, waited: float
) -> None:
    facts = replace(IDLE, assigned=LEADS, now=waited, failures=alike, alike=alike)
    pause = BACK_OFF_SECONDS * min(alike, 8)
    if alike >= ALIKE:
        pause = BACK_OFF_SECONDS * 2.0 ** min(alike, 8)
    assert next_shard_duty(facts) == (Lead(LEADS) if waited >= pause else Keep())
    assert pause <= 512


@given(
    assigned=st.sampled_from([None, LEADS, FOLLOWS, OTHER]),
    held=st.sampled_from([None, LEADS, FOLLOWS, OTHER]),
    ready=st.booleans(),
    since=st.floats(0, 1000),
    failures=st.integers(0, 9),
)
def test_no_device_loads_beside_what_it_holds(
    assigned: Assignment | None,
    held: Assignment | None,
    ready: bool,
    since: float,
    failures: int,
) -> None:
    duty = next_shard_duty(ShardFacts(1000.0, assigned, held, ready, since, failures))
    if isinstance(duty, Lead):
        assert held is None
        assert duty.assignment == assigned
        assert duty.assignment.leads
    if isinstance(duty, Drop):
        assert held is not None
