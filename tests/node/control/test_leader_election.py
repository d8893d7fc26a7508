"""Candidacy on a board in memory: claims, renewals, yields, and the end of a lease."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from node.control.election_policy import JITTER_SECONDS, RENEW_SECONDS, SETTLE_SECONDS
from node.control.leader_election import AWAY_SECONDS, Candidacy
from node.control.membership import LATELY_SECONDS
from swarm.election import ERA_SECONDS, LEASE_SECONDS, SKEW_SECONDS, TERM_JUMP
from swarm.errors import SwarmError, Unreachable
from swarm.records import Lease, Record
from swarm.testing.memory_network import MemoryBoard, MemoryWorld, peer_named
from swarm.trust.certificates import PlannerTrust
from tests.node.neighbours import SWARM, capability_of, look, neighbourhood_of

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


class Office:
    """Our candidacy, and what we know."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hand = Hand()
        for name in ("leader_election", "membership"):
            monkeypatch.setattr(f"node.control.{name}.time", self.hand)
            monkeypatch.setattr(f"node.control.{name}.CLOCK", self.hand)
        self.world = MemoryWorld(clock=self.hand)
        self.neighbourhood = neighbourhood_of(self.world, "me")
        self.board = FailingBoard(self.world, ME)
        self.candidacy = Candidacy(ME, self.board, self.neighbourhood)
        self.neighbourhood.note_own(capability_of())

    async def other_holds(self, term: int, *, seconds: float = LEASE_SECONDS) -> None:
        """Another peer is there, and publishes a lease."""
        neighbourhood_of(self.world, "other")
        other = self.world.board(OTHER)
        await other.publish(capability_of())
        await other.publish(Lease(term, self.hand.seconds + seconds))

    async def other_ranks(self, *, first: bool) -> None:
        """Pass on to an era in which the other peer is ranked before us, or behind."""
        await self.other_holds(0, seconds=-1.0)
        await self.pursue()
        while (self.neighbourhood.ranking()[0] == OTHER) != first:
            self.hand.seconds += ERA_SECONDS
            await self.other_holds(0, seconds=-1.0)
            await self.pursue()
        await self.candidacy.resign()

    async def pursue(self, *, after: float = 0.0) -> bool:
        """Let time pass, look, and do the next duty."""
        self.hand.seconds += after
        await self.neighbourhood.refresh()
        self.neighbourhood.note_own(capability_of())
        await self.neighbourhood.ask_whether_alive(self.neighbourhood.due())
        return await self.candidacy.pursue()

    async def take_office(self) -> None:
        assert not await self.pursue(after=SETTLE_SECONDS + JITTER_SECONDS)
        assert await self.pursue(after=SETTLE_SECONDS)

    async def leases(self) -> dict[str, Lease]:
        return await self.board.read(Lease)


Story = Callable[[Office], Awaitable[None]]
Run = Callable[[Story], None]


@pytest.fixture
def in_office(monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(story: Story) -> None:
        async def whole() -> None:
            async with asyncio.timeout(5):
                await story(Office(monkeypatch))

        asyncio.run(whole())

    return run


def test_a_lone_peer_claims_settles_and_then_plans(in_office: Run) -> None:
    async def story(office: Office) -> None:
        assert not await office.pursue()
        assert await office.leases() == {}
        assert not await office.pursue(after=SETTLE_SECONDS)
        assert office.candidacy.holds
        assert (await office.leases())[ME] == Lease(1, office.hand.seconds + LEASE_SECONDS)
        assert not await office.pursue(after=SETTLE_SECONDS / 2)
        assert await office.pursue(after=SETTLE_SECONDS / 2)

    in_office(story)


def test_a_lease_is_renewed_before_it_is_over(in_office: Run) -> None:
    async def story(office: Office) -> None:
        await office.take_office()
        for _ in range(10):
            assert await office.pursue(after=RENEW_SECONDS)
            assert (await office.leases())[ME].until == office.hand.seconds + LEASE_SECONDS
        assert office.candidacy.term == 1

    in_office(story)


def test_a_lease_of_a_better_ranked_peer_ends_ours_whatever_its_term(in_office: Run) -> None:
    async def story(office: Office) -> None:
        await office.other_ranks(first=True)
        await office.take_office()
        await office.candidacy.raise_term()
        await office.other_holds(1)
        assert not await office.pursue()
        assert not office.candidacy.holds
        assert office.neighbourhood.own_lease is None
        assert not await office.pursue(after=1.0)

    in_office(story)


@pytest.mark.parametrize("term", [1, 2, TERM_JUMP, 1001])
def test_a_lease_of_a_worse_ranked_peer_does_not(in_office: Run, term: int) -> None:
    async def story(office: Office) -> None:
        await office.other_ranks(first=False)
        await office.take_office()
        await office.other_holds(term)
        assert await office.pursue()

    in_office(story)


def test_a_lease_of_a_peer_that_does_not_answer_is_none(in_office: Run) -> None:
    async def story(office: Office) -> None:
        await office.other_ranks(first=True)
        await office.take_office()
        await office.other_holds(1)
        office.world.cut(ME, OTHER)
        office.hand.seconds += LATELY_SECONDS  # what it said before counts no more
        office.candidacy._confirmed_at += LATELY_SECONDS
        await office.other_holds(1)
        office.world.cut(ME, OTHER)
        assert await office.pursue()

    in_office(story)


def test_a_board_out_of_reach_ends_the_office_before_the_lease_does(in_office: Run) -> None:
    async def story(office: Office) -> None:
        await office.take_office()
        office.board.fails = True
        passed = SETTLE_SECONDS  # since the claim was confirmed
        while await office.pursue(after=1.0):
            passed += 1.0
        assert passed < LEASE_SECONDS - SKEW_SECONDS <= passed + 1.0
        assert not office.candidacy.holds

    in_office(story)


def test_a_claim_that_nobody_took_gives_no_office(in_office: Run) -> None:
    async def story(office: Office) -> None:
        office.board.fails = True
        for _ in range(10):
            assert not await office.pursue(after=2.0)

    in_office(story)


def test_an_earlier_office_does_not_confirm_a_claim_that_nobody_took(in_office: Run) -> None:
    async def story(office: Office) -> None:
        await office.other_ranks(first=True)
        await office.take_office()
        await office.other_holds(2, seconds=0.5)
        assert not await office.pursue()
        office.board.fails = True
        for _ in range(9):
            assert not await office.pursue(after=1.0)

    in_office(story)


def test_a_new_plan_gets_a_higher_term_than_any_that_is_known(in_office: Run) -> None:
    async def story(office: Office) -> None:
        await office.take_office()
        assert await office.candidacy.raise_term() == 2
        office.neighbourhood.verified_term = 8
        assert await office.candidacy.raise_term() == 9
        assert (await office.leases())[ME].term == 9

    in_office(story)


def test_nobody_plans_under_a_lease_that_is_over(in_office: Run) -> None:
    async def story(office: Office) -> None:
        with pytest.raises(SwarmError, match="ran out"):
            await office.candidacy.raise_term()
        await office.take_office()
        office.hand.seconds += LEASE_SECONDS - SKEW_SECONDS
        before = await office.leases()
        with pytest.raises(SwarmError, match="ran out"):
            await office.candidacy.raise_term()
        assert await office.leases() == before

    in_office(story)


def test_who_resigns_leaves_a_lease_that_is_over(in_office: Run) -> None:
    async def story(office: Office) -> None:
        await office.candidacy.resign()
        assert await office.leases() == {}
        await office.take_office()
        await office.candidacy.resign()
        assert (await office.leases())[ME].until <= office.hand.seconds
        assert not office.candidacy.holds

    in_office(story)


def test_the_rank_of_a_peer_that_is_no_candidate_is_behind_all_others(in_office: Run) -> None:
    async def story(office: Office) -> None:
        assert office.candidacy.rank == 0
        office.neighbourhood.note_own(capability_of(model="d" * 64, age_seconds=0.0))
        await office.other_holds(0, seconds=-1.0)
        await look(office.neighbourhood)
        assert office.candidacy.rank == 1

    in_office(story)


def test_a_term_is_raised_above_what_others_follow_but_no_further_than_they_believe(
    in_office: Run,
) -> None:
    async def story(office: Office) -> None:
        await office.take_office()
        assert await office.candidacy.raise_term(7) == 8
        assert await office.candidacy.raise_term(10**9) == TERM_JUMP

    in_office(story)


def test_who_stands_down_stands_again_only_after_a_while_that_grows(in_office: Run) -> None:
    async def story(office: Office) -> None:
        for pause in (AWAY_SECONDS, 2 * AWAY_SECONDS):
            await office.take_office()
            await office.candidacy.stand_down()
            assert (await office.leases())[ME].until <= office.hand.seconds
            assert not await office.pursue(after=pause / 2)
            assert not office.candidacy.holds
            office.hand.seconds += pause / 2
        assert office.candidacy.term == 1

    in_office(story)


def test_without_a_proof_nobody_claims_the_office_of_an_open_swarm(in_office: Run) -> None:
    async def story(office: Office) -> None:
        office.neighbourhood._trust = PlannerTrust(SWARM, is_private=False)
        assert not await office.pursue(after=100.0)
        assert not office.candidacy.holds

    in_office(story)
