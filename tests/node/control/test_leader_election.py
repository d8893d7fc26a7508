"""LeaderElection on a board in memory: claims, renewals, yields, and the end of a lease."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from node.control.election_policy import JITTER_SECONDS, RENEW_SECONDS, SETTLE_SECONDS
from node.control.failure_detector import LATELY_SECONDS
from node.control.leader_election import AWAY_SECONDS, LeaderElection
from swarm.election import ERA_SECONDS, LEASE_SECONDS, SKEW_SECONDS, TERM_JUMP
from swarm.errors import SwarmError, Unreachable
from swarm.records import Lease, Record
from swarm.testing.memory_network import MemoryBoard, MemoryWorld, peer_named
from swarm.trust.certificates import PlannerTrust
from tests.node.memberships import SWARM, capability_of, look, membership_of

ME, OTHER = peer_named("me"), peer_named("other")


class Hand:
    """A clock that a test moves; it is time's two clocks and the board's."""

    def __init__(self) -> None:
        self.seconds = time.time()

    def time(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> float:
        return self.seconds

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """No deadline comes here: who is there answers at once."""


class FailingBoard(MemoryBoard):
    """A board that takes nothing in while `fails`."""

    fails = False

    async def publish(self, record: Record, *, ttl_seconds: float | None = None) -> None:
        if self.fails:
            raise Unreachable("nobody took it")
        await super().publish(record, ttl_seconds=ttl_seconds)


class Candidate:
    """Our part in the election, and what we know."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hand = Hand()
        for name in ("leader_election", "membership"):
            monkeypatch.setattr(f"node.control.{name}.time", self.hand)
            monkeypatch.setattr(f"node.control.{name}.CLOCK", self.hand)
        self.world = MemoryWorld(clock=self.hand)
        self.membership = membership_of(self.world, "me")
        self.board = FailingBoard(self.world, ME)
        self.election = LeaderElection(ME, self.board, self.membership)
        self.membership.note_own(capability_of())

    async def other_holds(self, term: int, *, seconds: float = LEASE_SECONDS) -> None:
        """Another peer is there, and publishes a lease."""
        membership_of(self.world, "other")
        other = self.world.board(OTHER)
        await other.publish(capability_of())
        await other.publish(Lease(term, self.hand.seconds + seconds))

    async def other_ranks(self, *, first: bool) -> None:
        """Pass on to an era in which the other peer is ranked before us, or behind."""
        await self.other_holds(0, seconds=-1.0)
        await self.pursue()
        while (self.membership.ranking()[0] == OTHER) != first:
            self.hand.seconds += ERA_SECONDS
            await self.other_holds(0, seconds=-1.0)
            await self.pursue()
        await self.election.resign()

    async def pursue(self, *, after: float = 0.0) -> bool:
        """Let time pass, look, and do the next duty."""
        self.hand.seconds += after
        await self.membership.refresh()
        self.membership.note_own(capability_of())
        await self.membership.ask_whether_alive(self.membership.due())
        return await self.election.pursue()

    async def win_lease(self) -> None:
        assert not await self.pursue(after=SETTLE_SECONDS + JITTER_SECONDS)
        assert await self.pursue(after=SETTLE_SECONDS)

    async def leases(self) -> dict[str, Lease]:
        return await self.board.read(Lease)


Story = Callable[[Candidate], Awaitable[None]]
Run = Callable[[Story], None]


@pytest.fixture
def as_candidate(monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(story: Story) -> None:
        async def whole() -> None:
            async with asyncio.timeout(5):
                await story(Candidate(monkeypatch))

        asyncio.run(whole())

    return run


def test_a_lone_peer_claims_settles_and_then_plans(as_candidate: Run) -> None:
    async def story(candidate: Candidate) -> None:
        assert not await candidate.pursue()
        assert await candidate.leases() == {}
        assert not await candidate.pursue(after=SETTLE_SECONDS)
        assert candidate.election.holds
        assert (await candidate.leases())[ME] == Lease(1, candidate.hand.seconds + LEASE_SECONDS)
        assert not await candidate.pursue(after=SETTLE_SECONDS / 2)
        assert await candidate.pursue(after=SETTLE_SECONDS / 2)

    as_candidate(story)


def test_a_lease_is_renewed_before_it_is_over(as_candidate: Run) -> None:
    async def story(candidate: Candidate) -> None:
        await candidate.win_lease()
        for _ in range(10):
            assert await candidate.pursue(after=RENEW_SECONDS)
            assert (await candidate.leases())[ME].until == candidate.hand.seconds + LEASE_SECONDS
        assert candidate.election.term == 1

    as_candidate(story)


def test_a_lease_of_a_better_ranked_peer_ends_ours_whatever_its_term(as_candidate: Run) -> None:
    async def story(candidate: Candidate) -> None:
        await candidate.other_ranks(first=True)
        await candidate.win_lease()
        await candidate.election.raise_term()
        await candidate.other_holds(1)
        assert not await candidate.pursue()
        assert not candidate.election.holds
        assert candidate.membership.own_lease is None
        assert not await candidate.pursue(after=1.0)

    as_candidate(story)


@pytest.mark.parametrize("term", [1, 2, TERM_JUMP, 1001])
def test_a_lease_of_a_worse_ranked_peer_does_not(as_candidate: Run, term: int) -> None:
    async def story(candidate: Candidate) -> None:
        await candidate.other_ranks(first=False)
        await candidate.win_lease()
        await candidate.other_holds(term)
        assert await candidate.pursue()

    as_candidate(story)


def test_a_lease_of_a_peer_that_does_not_answer_is_none(as_candidate: Run) -> None:
    async def story(candidate: Candidate) -> None:
        await candidate.other_ranks(first=True)
        await candidate.win_lease()
        await candidate.other_holds(1)
        candidate.world.cut(ME, OTHER)
        candidate.hand.seconds += LATELY_SECONDS  # what it said before counts no more
        candidate.election._confirmed_at += LATELY_SECONDS
        await candidate.other_holds(1)
        candidate.world.cut(ME, OTHER)
        assert await candidate.pursue()

    as_candidate(story)


def test_a_board_out_of_reach_ends_the_term_before_the_lease_does(as_candidate: Run) -> None:
    async def story(candidate: Candidate) -> None:
        await candidate.win_lease()
        candidate.board.fails = True
        passed = SETTLE_SECONDS  # since the claim was confirmed
        while await candidate.pursue(after=1.0):
            passed += 1.0
        assert passed < LEASE_SECONDS - SKEW_SECONDS <= passed + 1.0
        assert not candidate.election.holds

    as_candidate(story)


def test_a_claim_that_nobody_took_gives_no_lease(as_candidate: Run) -> None:
    async def story(candidate: Candidate) -> None:
        candidate.board.fails = True
        for _ in range(10):
            assert not await candidate.pursue(after=2.0)

    as_candidate(story)


def test_an_earlier_lease_does_not_confirm_a_claim_that_nobody_took(as_candidate: Run) -> None:
    async def story(candidate: Candidate) -> None:
        await candidate.other_ranks(first=True)
        await candidate.win_lease()
        await candidate.other_holds(2, seconds=0.5)
        assert not await candidate.pursue()
        candidate.board.fails = True
        for _ in range(9):
            assert not await candidate.pursue(after=1.0)

    as_candidate(story)


def test_a_new_plan_gets_a_higher_term_than_any_that_is_known(as_candidate: Run) -> None:
    async def story(candidate: Candidate) -> None:
        await candidate.win_lease()
        assert await candidate.election.raise_term() == 2
        candidate.membership.verified_term = 8
        assert await candidate.election.raise_term() == 9
        assert (await candidate.leases())[ME].term == 9

    as_candidate(story)


def test_nobody_plans_under_a_lease_that_is_over(as_candidate: Run) -> None:
    async def story(candidate: Candidate) -> None:
        with pytest.raises(SwarmError, match="ran out"):
            await candidate.election.raise_term()
        await candidate.win_lease()
        candidate.hand.seconds += LEASE_SECONDS - SKEW_SECONDS
        before = await candidate.leases()
        with pytest.raises(SwarmError, match="ran out"):
            await candidate.election.raise_term()
        assert await candidate.leases() == before

    as_candidate(story)


def test_who_resigns_leaves_a_lease_that_is_over(as_candidate: Run) -> None:
    async def story(candidate: Candidate) -> None:
        await candidate.election.resign()
        assert await candidate.leases() == {}
        await candidate.win_lease()
        await candidate.election.resign()
        assert (await candidate.leases())[ME].until <= candidate.hand.seconds
        assert not candidate.election.holds

    as_candidate(story)


def test_the_rank_of_a_peer_that_is_no_candidate_is_behind_all_others(as_candidate: Run) -> None:
    async def story(candidate: Candidate) -> None:
        assert candidate.election.rank == 0
        candidate.membership.note_own(capability_of(model="d" * 64, age_seconds=0.0))
        await candidate.other_holds(0, seconds=-1.0)
        await look(candidate.membership)
        assert candidate.election.rank == 1

    as_candidate(story)


def test_a_term_is_raised_above_what_others_follow_but_no_further_than_they_believe(
    as_candidate: Run,
) -> None:
    async def story(candidate: Candidate) -> None:
        await candidate.win_lease()
        assert await candidate.election.raise_term(7) == 8
        assert await candidate.election.raise_term(10**9) == TERM_JUMP

    as_candidate(story)


def test_who_stands_down_stands_again_only_after_a_while_that_grows(as_candidate: Run) -> None:
    async def story(candidate: Candidate) -> None:
        for pause in (AWAY_SECONDS, 2 * AWAY_SECONDS):
            await candidate.win_lease()
            await candidate.election.stand_down()
            assert (await candidate.leases())[ME].until <= candidate.hand.seconds
            assert not await candidate.pursue(after=pause / 2)
            assert not candidate.election.holds
            candidate.hand.seconds += pause / 2
        assert candidate.election.term == 1

    as_candidate(story)


def test_without_a_proof_nobody_claims_the_lease_of_an_open_swarm(as_candidate: Run) -> None:
    async def story(candidate: Candidate) -> None:
        candidate.membership._trust = PlannerTrust(SWARM, is_private=False)
        assert not await candidate.pursue(after=100.0)
        assert not candidate.election.holds

    as_candidate(story)
