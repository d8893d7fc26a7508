"""What a node knows of the others: records, leases, plans, and who answers when asked."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from node.duties import Holder
from node.neighbourhood import AGAIN_SECONDS, HEARTBEAT_SECONDS, MISSES
from planner.election import LEASE_SECONDS, TERM_JUMP
from swarm.hardware import Link
from swarm.memory import MemoryWorld, peer_named
from swarm.records import Lease, PlanRef, Record
from tests.node.neighbours import capability_of, neighbourhood_of

ME, ANNA, BERT = (peer_named(name) for name in ("me", "anna", "bert"))


class Street:
    """Three peers; we are one of them."""

    def __init__(self) -> None:
        self.world = MemoryWorld()
        self.own = neighbourhood_of(self.world, "me")
        self.others = {peer_named(n): neighbourhood_of(self.world, n) for n in ("anna", "bert")}

    async def publish(self, peer: str, *records: Record) -> None:
        for record in records:
            await self.world.board(peer).publish(record)

    async def settle_in(self) -> None:
        """Everybody says what they can do, and we look."""
        for peer in (ME, ANNA, BERT):
            await self.publish(peer, capability_of())
        await self.own.refresh()


Story = Callable[[Street], Awaitable[None]]
Run = Callable[[Story], None]


@pytest.fixture
def in_street() -> Run:
    def run(story: Story) -> None:
        async def whole() -> None:
            async with asyncio.timeout(5):
                await story(Street())

        asyncio.run(whole())

    return run


def lease(term: int, seconds: float = LEASE_SECONDS) -> Lease:
    return Lease(term, time.time() + seconds)


def test_peers_of_our_model_that_stay_are_our_neighbours(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        assert set(street.own.capabilities) == {ME, ANNA, BERT}
        await street.publish(ANNA, capability_of(model="other"))
        await street.publish(BERT, replace(capability_of(), leaving=True))
        await street.own.refresh()
        assert set(street.own.capabilities) == {ME}

    in_street(story)


def test_our_own_capability_is_known_before_the_board_has_it(in_street: Run) -> None:
    async def story(street: Street) -> None:
        street.own.note_own(capability_of())
        assert set(street.own.capabilities) == {ME}
        assert street.own.ranking() == [ME]

    in_street(story)


def test_the_speed_to_a_peer_is_what_the_peer_received_else_what_we_did(in_street: Run) -> None:
    async def story(street: Street) -> None:
        to_anna, to_bert = Link(ANNA, 0.01, 5e6), Link(BERT, 0.01, 7e6)
        from_me = Link(ME, 0.01, 1e6)  # a home's upload, as Anna sees it
        await street.publish(ME, capability_of(host="home", links=[to_anna, to_bert]))
        await street.publish(ANNA, capability_of(host="hall", links=[to_bert, from_me]))
        await street.publish(BERT, capability_of(host="barn", links=[to_anna]))
        await street.own.refresh()
        assert street.own.bytes_per_second_to(ANNA) == 1e6
        assert street.own.bytes_per_second_to(BERT) == 7e6

    in_street(story)


def test_the_way_inside_a_machine_or_unmeasured_counts_as_ample(in_street: Run) -> None:
    async def story(street: Street) -> None:
        slow = Link(ANNA, 0.01, 10.0)
        await street.publish(ME, capability_of(host="home", links=[slow]))
        await street.publish(ANNA, capability_of(host="home", links=[replace(slow, peer=ME)]))
        await street.publish(BERT, capability_of(host="barn", links=[slow]))
        assert street.own.bytes_per_second_to(BERT) == math.inf
        await street.own.refresh()
        assert street.own.bytes_per_second_to(ANNA) == math.inf
        assert street.own.bytes_per_second_to(BERT) == math.inf
        assert street.own.bytes_per_second_to(peer_named("nobody")) == math.inf

    in_street(story)


def test_all_observers_rank_alike(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        for other in street.others.values():
            await other.refresh()
            assert other.ranking() == street.own.ranking()
        assert sorted(street.own.ranking()) == sorted([ME, ANNA, BERT])

    in_street(story)


def test_newcomers_rank_only_where_nobody_is_settled(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        await street.publish(ME, capability_of(age_seconds=HEARTBEAT_SECONDS))
        await street.own.refresh()
        assert ME not in street.own.ranking()

    in_street(story)


def test_two_misses_in_a_row_make_a_peer_lost_and_one_does_not(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        street.world.cut(ME, ANNA)
        assert MISSES == 2
        await street.own.ask_whether_alive([ANNA, BERT])
        assert ANNA in street.own.capabilities
        assert street.own.has_misses
        await street.own.ask_whether_alive([ANNA, BERT])
        assert set(street.own.capabilities) == {ME, BERT}
        assert not street.own.answers(ANNA)

    in_street(story)


def test_an_answer_between_two_misses_makes_up_for_the_first(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        for _ in range(3):
            street.world.cut(ME, ANNA)
            await street.own.ask_whether_alive([ANNA])
            street.world.heal(ME, ANNA)
            await street.own.ask_whether_alive([ANNA])
        assert ANNA in street.own.capabilities

    in_street(story)


def test_a_lost_peer_that_answers_again_is_back(
    in_street: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("node.neighbourhood._now", lambda: now)

    async def story(street: Street) -> None:
        nonlocal now
        await street.settle_in()
        street.world.cut(ME, ANNA)
        for _ in range(MISSES):
            await street.own.ask_whether_alive([ANNA])
        street.world.heal(ME, ANNA)
        await street.own.ask_whether_alive([])
        assert ANNA not in street.own.capabilities
        now = AGAIN_SECONDS + 1
        await street.own.ask_whether_alive([])
        assert ANNA in street.own.capabilities

    in_street(story)


def test_a_live_lease_of_a_peer_that_answers_makes_it_the_planner(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        assert street.own.planner is None
        await street.publish(ANNA, lease(4))
        await street.publish(BERT, lease(3))
        await street.publish(ME, lease(9))
        await street.own.refresh()
        ranking = street.own.ranking()
        assert set(street.own.holders()) == {
            Holder(ANNA, 4, ranking.index(ANNA)),
            Holder(BERT, 3, ranking.index(BERT)),
        }
        assert street.own.planner == ANNA
        street.world.kill(ANNA)
        for _ in range(MISSES):
            await street.own.ask_whether_alive([ANNA])
        assert street.own.planner == BERT

    in_street(story)


def test_a_lease_that_is_over_counts_no_more_although_its_record_lives(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        await street.publish(ANNA, lease(4, seconds=-1.0))
        await street.own.refresh()
        assert street.own.holders() == ()

    in_street(story)


def test_the_office_is_vacant_since_the_last_holder_was_seen(
    in_street: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("node.neighbourhood._now", lambda: now)

    async def story(street: Street) -> None:
        nonlocal now
        await street.settle_in()
        began = street.own.vacant_since
        await street.publish(ANNA, lease(4))
        now = 50.0
        await street.own.refresh()
        assert street.own.vacant_since == 50.0 > began
        await street.publish(ANNA, lease(4, seconds=-1.0))
        now = 60.0
        await street.own.refresh()
        assert street.own.vacant_since == 50.0

    in_street(story)


def test_the_term_is_the_highest_that_is_believable(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        assert street.own.term == 0
        await street.publish(ANNA, lease(4), PlanRef(5, 0, "a" * 64, 10))
        await street.publish(BERT, replace(capability_of(), term=6))
        await street.own.refresh()
        assert street.own.term == 6
        await street.publish(BERT, lease(7 + TERM_JUMP))
        await street.own.refresh()
        assert street.own.term == 6
        street.own.verified_term = 7
        assert street.own.term == 7 + TERM_JUMP

    in_street(story)


def test_plans_are_offered_only_by_peers_that_are_there(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        reference = PlanRef(5, 0, "a" * 64, 10)
        await street.publish(ANNA, reference)
        await street.publish(peer_named("ghost"), PlanRef(9, 0, "b" * 64, 10))
        await street.own.refresh()
        assert street.own.plans() == {ANNA: reference}

    in_street(story)


def test_news_reach_those_that_answer_and_wait_for_nobody(in_street: Run) -> None:
    heard: list[str] = []

    async def hear(peer: str, _payload: bytes) -> bytes:
        heard.append(peer)
        return b""

    async def story(street: Street) -> None:
        street.world.channels[BERT].answer("news", hear)
        street.world.kill(ANNA)
        await street.own.tell_news([ME, ANNA, BERT])
        assert heard == [ME]

    in_street(story)
