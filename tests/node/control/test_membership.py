"""What a node knows of the others: records, leases, plans, and who answers when asked."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgpack
import pytest

from node.control.election_policy import Holder
from node.control.failure_detector import AGAIN_SECONDS, ASKED_AT_ONCE, MISSES
from node.control.membership import (
    ABSENT_SECONDS,
    HEARTBEAT_SECONDS,
    TOLD_BY_NEWCOMER,
    Membership,
    Standing,
)
from swarm.dht.board import R
from swarm.election import COMMON_TERM_CAP, LEASE_SECONDS, SKEW_SECONDS, TERM_JUMP
from swarm.hardware import Link
from swarm.p2p.channel import RpcHandler
from swarm.records import TERM_CAP, Capability, Lease, PlanRef, Record
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.trust.certificates import PlannerTrust
from tests.node.memberships import MEMBERS, SPEC, SWARM, capability_of, look, membership_of

ME, ANNA, BERT = (peer_named(name) for name in ("me", "anna", "bert"))


class OnlyAnna(PlannerTrust):
    """Nobody else may plan."""

    def accepts(self, peer: str, proof: bytes) -> bool:
        return peer == ANNA


class Street:
    """Three peers; we are one of them."""

    def __init__(self) -> None:
        self.world = MemoryWorld()
        self.own = membership_of(self.world, "me")
        self.others = {peer_named(n): membership_of(self.world, n) for n in ("anna", "bert")}

    async def publish(self, peer: str, *records: Record) -> None:
        for record in records:
            await self.world.board(peer).publish(record)

    async def settle_in(self) -> None:
        """Everybody says what they can do, and we look."""
        for peer in (ME, ANNA, BERT):
            await self.publish(peer, capability_of())
        await self.look()

    async def look(self) -> None:
        """Read the board, and ask whoever holds a lease or is new."""
        await look(self.own)


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
            await look(other)
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
    monkeypatch.setattr("node.control.membership._now", lambda: now)

    async def story(street: Street) -> None:
        nonlocal now
        await street.settle_in()
        street.world.cut(ME, ANNA)
        for _ in range(MISSES):
            await street.own.ask_whether_alive([ANNA])
        street.world.heal(ME, ANNA)
        await street.look()
        assert ANNA not in street.own.capabilities
        now = AGAIN_SECONDS + 1
        await street.look()
        assert ANNA in street.own.capabilities

    in_street(story)


def test_a_live_lease_of_a_peer_that_answers_makes_it_the_planner(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        assert street.own.planner is None
        await street.publish(ANNA, lease(4))
        await street.publish(BERT, lease(3))
        await street.publish(ME, lease(9))
        await street.look()
        ranking = street.own.ranking()
        assert set(street.own.holders()) == {
            Holder(ANNA, 4, ranking.index(ANNA)),
            Holder(BERT, 3, ranking.index(BERT)),
        }
        first, second = sorted((ANNA, BERT), key=ranking.index)
        assert street.own.planner == first
        street.world.kill(first)
        for _ in range(MISSES):
            await street.own.ask_whether_alive([first])
        assert street.own.planner == second

    in_street(story)


def test_a_lease_that_is_over_counts_no_more_although_its_record_lives(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        await street.publish(ANNA, lease(4, seconds=-1.0))
        await street.own.refresh()
        assert street.own.holders() == ()

    in_street(story)


def test_the_lease_is_vacant_since_the_last_holder_was_seen(
    in_street: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("node.control.membership._now", lambda: now)

    async def story(street: Street) -> None:
        nonlocal now
        await street.settle_in()
        began = street.own.vacant_since
        await street.publish(ANNA, lease(4))
        now = 50.0
        await street.look()
        assert street.own.vacant_since == 50.0 > began
        await street.publish(ANNA, lease(4, seconds=-1.0))
        now = 60.0
        await street.look()
        assert street.own.vacant_since == 50.0

    in_street(story)


def test_the_term_is_the_highest_believable_one_of_those_that_may_plan(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        assert street.own.term == 0
        await street.publish(ANNA, lease(4), PlanRef(5, 0, "a" * 64, 10))
        await street.publish(BERT, replace(capability_of(), term=6))  # a claim that nobody asked
        await street.look()
        assert street.own.term == 5
        await street.publish(BERT, lease(7 + TERM_JUMP))
        await street.look()
        assert street.own.term == 5
        street.own.verified_term = 7
        assert street.own.term == 7 + TERM_JUMP

    in_street(story)


def test_who_was_away_for_long_catches_up_with_the_planners_that_answer(in_street: Run) -> None:
    high = 50 * TERM_JUMP

    async def story(street: Street) -> None:
        for peer in (ANNA, BERT):
            street.others[peer].own = Standing(high)
        await street.settle_in()
        assert street.own.trusted_term == high
        await street.publish(ANNA, lease(high + 2))
        await street.look()
        assert street.own.planner == ANNA

    in_street(story)


def test_records_alone_never_raise_the_term_that_is_trusted(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        for number in range(20):
            sybil = peer_named(f"sybil {number}")
            await street.publish(sybil, replace(capability_of(), term=TERM_CAP), lease(TERM_CAP))
        await street.look()
        assert street.own.trusted_term == street.own.term == 0
        assert street.own.holders() == ()

    in_street(story)


def test_answers_of_peers_that_may_not_plan_never_raise_it_either(in_street: Run) -> None:
    async def story(street: Street) -> None:
        street.own._trust = PlannerTrust(SWARM, is_private=False)
        for peer in (ANNA, BERT):
            street.others[peer].own = Standing(50)
            await street.publish(peer, lease(50))
        await street.settle_in()
        assert street.own.has_heard(ANNA)
        assert street.own.trusted_term == street.own.term == 0
        assert street.own.holders() == ()

    in_street(story)


def test_no_answer_moves_the_trusted_term_where_no_later_one_travels(in_street: Run) -> None:
    async def story(street: Street) -> None:
        for peer in (ANNA, BERT):
            street.others[peer].own = Standing(TERM_CAP)
        await street.settle_in()
        assert street.own.trusted_term == COMMON_TERM_CAP < TERM_CAP / 2

    in_street(story)


@pytest.mark.parametrize(
    "answer",
    [b"", b"\xc1", b"x" * 2000, *map(msgpack.packb, ([], [-1, b""], [2**63, b""], {"a": 1}))],
)
def test_an_answer_that_says_nothing_of_a_standing_still_shows_that_a_peer_is_there(
    in_street: Run, answer: bytes
) -> None:
    async def story(street: Street) -> None:
        async def babble(_peer: str, _payload: bytes) -> bytes:
            return answer

        street.world.channels[ANNA].answer("alive", babble)
        await street.settle_in()
        assert street.own.has_heard(ANNA)
        assert street.own.followed_term == street.own.trusted_term == 0

    in_street(story)


def test_the_plan_that_counts_is_that_of_the_live_lease_that_covers_it(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        reference, later = PlanRef(5, 0, "a" * 64, 10), PlanRef(9, 0, "b" * 64, 10)
        await street.publish(ANNA, reference)
        await street.publish(peer_named("ghost"), later, lease(9))
        await street.look()
        assert street.own.offer() is None
        await street.publish(ANNA, lease(4))
        await street.look()
        assert street.own.offer() is None
        await street.publish(ANNA, lease(5))
        await street.publish(BERT, later)  # without any lease
        await street.look()
        assert street.own.offer() == (ANNA, reference)

    in_street(story)


def test_the_better_ranked_planner_counts_whatever_the_other_says_its_term_is(
    in_street: Run,
) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        better, worse = [peer for peer in street.own.ranking() if peer != ME]
        await street.publish(better, lease(4), PlanRef(4, 0, "a" * 64, 10))
        await street.publish(worse, lease(4 + TERM_JUMP // 2), PlanRef(5, 1, "b" * 64, 10))
        await street.look()
        assert street.own.planner == better
        assert street.own.offer() == (better, PlanRef(4, 0, "a" * 64, 10))
        street.world.kill(better)
        for _ in range(MISSES):
            await street.own.ask_whether_alive([better])
        assert street.own.planner == worse

    in_street(story)


def test_only_peers_that_answered_lately_are_ranked(in_street: Run) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        for number in range(100):
            sybil = peer_named(f"sybil {number}")
            await street.publish(sybil, replace(capability_of(), since=0.0))
        for _ in range(3):
            await street.look()
        assert set(street.own.ranking()) == {ME, ANNA, BERT}

    in_street(story)


def test_who_never_answers_is_asked_ever_more_seldom(
    in_street: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, asked = 0.0, []
    monkeypatch.setattr("node.control.membership._now", lambda: now)

    async def story(street: Street) -> None:
        nonlocal now
        await street.settle_in()
        ghost = peer_named("ghost")
        for _ in range(600):
            now += 1.0
            await street.publish(ghost, capability_of())
            await street.own.refresh()
            due = street.own.due(everybody=True)
            asked.append(ghost in due)
            await street.own.ask_whether_alive(due)
        assert 2 < sum(asked) < 12

    in_street(story)


@pytest.mark.parametrize("holds_lease", [False, True])
def test_a_lost_peer_that_asks_us_something_is_asked_again_soon(
    in_street: Run, monkeypatch: pytest.MonkeyPatch, holds_lease: bool
) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        seconds = time.monotonic()
        monkeypatch.setattr("node.control.membership._now", lambda: seconds)
        street.world.kill(ANNA)
        for _ in range(200):
            seconds += 1.0
            if holds_lease:
                await street.publish(ANNA, lease(1))
            await street.look()
        street.others[ANNA] = membership_of(street.world, "anna")
        await street.others[ANNA].ask_whether_alive([ME])
        seconds += AGAIN_SECONDS + 1.0
        street.world.records.pop((Lease, ANNA), None)
        await street.look()
        assert street.own.has_heard(ANNA)

    in_street(story)


def test_a_lease_holder_that_is_silent_is_not_left_alone_for_longer_than_others(
    in_street: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(street: Street) -> None:
        await street.settle_in()
        seconds = time.monotonic()
        monkeypatch.setattr("node.control.membership._now", lambda: seconds)
        street.world.kill(ANNA)
        for _ in range(20):
            seconds += 1.0
            await street.publish(ANNA, lease(1))
            await street.look()
        membership_of(street.world, "anna")
        street.world.records.pop((Lease, ANNA), None)
        seconds += 4 * AGAIN_SECONDS
        await street.look()
        assert street.own.has_heard(ANNA)

    in_street(story)


def test_leases_of_strangers_do_not_keep_the_planner_from_being_asked(in_street: Run) -> None:
    async def story(street: Street) -> None:
        street.own._trust = OnlyAnna(SWARM, is_private=False)
        for number in range(3 * ASKED_AT_ONCE):
            sybil = peer_named(f"sybil {number}")
            await street.publish(sybil, capability_of(), lease(1))
        await street.publish(ANNA, capability_of(), lease(1))
        await street.own.refresh()
        assert street.own.due()[0] == ANNA

    in_street(story)


def test_a_peer_hurries_nobody_with_a_later_term_that_it_alone_follows(in_street: Run) -> None:
    async def story(street: Street) -> None:
        street.others[ANNA].own, street.others[BERT].own = Standing(50), Standing(4)
        await street.settle_in()
        assert street.own.followed_term == 50
        assert not street.own.most_follow_later(4)
        assert street.own.most_follow_later(3)
        assert street.own.followers_of(50) == [ANNA]

    in_street(story)


def test_a_record_missing_for_a_moment_costs_no_peer_that_answers(
    in_street: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("node.control.membership._now", lambda: now)

    async def story(street: Street) -> None:
        nonlocal now
        await street.settle_in()
        for peer in (ANNA, BERT):
            del street.world.records[Capability, peer]
        street.world.kill(BERT)
        for _ in range(MISSES):
            await street.own.refresh()
            await street.own.ask_whether_alive([ANNA, BERT])
        await street.own.refresh()
        assert set(street.own.capabilities) == {ME, ANNA}
        now = ABSENT_SECONDS + 1
        await street.own.ask_whether_alive([ANNA])
        await street.own.refresh()
        assert set(street.own.capabilities) == {ME}

    in_street(story)


def test_a_lease_that_nobody_renews_is_over_whatever_it_says(
    in_street: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("node.control.membership._now", lambda: now)

    async def story(street: Street) -> None:
        nonlocal now
        await street.settle_in()
        await street.publish(ANNA, lease(4, seconds=1e9))
        await street.look()
        assert street.own.planner == ANNA
        now = LEASE_SECONDS + SKEW_SECONDS + 1
        await street.own.ask_whether_alive([ANNA])
        assert street.own.planner is None

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


class CountedBoard:
    """A board that counts how often each kind is read."""

    def __init__(self, world: MemoryWorld, peer: str) -> None:
        self.peer = peer
        self.reads: Counter[str] = Counter()
        self._board = world.board(peer)

    async def publish(self, record: Record, *, ttl_seconds: float | None = None) -> None:
        await self._board.publish(record, ttl_seconds=ttl_seconds)

    async def read(self, kind: type[R], *, latest: bool = True) -> dict[str, R]:
        self.reads[kind.KEY] += 1
        return await self._board.read(kind, latest=latest)

    async def close(self) -> None:
        await self._board.close()


async def crowded(world: MemoryWorld, peers: int) -> None:
    for number in range(peers):
        await world.board(peer_named(f"peer {number}")).publish(capability_of())


@pytest.mark.parametrize(("peers", "reads"), [(10, 20), (400, 5)])
def test_a_crowd_is_not_read_as_a_whole_at_every_look(
    peers: int, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = time.monotonic()
    monkeypatch.setattr("node.control.membership._now", lambda: seconds)

    async def story() -> None:
        nonlocal seconds
        world = MemoryWorld()
        await crowded(world, peers)
        board = CountedBoard(world, ME)
        own = Membership(SWARM, SPEC.digest, board, world.channel(ME), MEMBERS)
        for _ in range(20):
            await own.refresh()
            seconds += 1.0
        assert board.reads == {"capability": reads, "planner": 20, "plan": 20}
        own.read_soon()
        await own.refresh()
        assert board.reads["capability"] == reads + 1

    asyncio.run(story())


def test_who_joins_a_crowd_tells_who_plans_and_some_others() -> None:
    async def story() -> None:
        world, told = MemoryWorld(), set[str]()
        await crowded(world, 3 * TOLD_BY_NEWCOMER)

        def listener(peer: str) -> RpcHandler:
            async def hear(_asker: str, _payload: bytes) -> bytes:
                told.add(peer)
                return b""

            return hear

        for number in range(3 * TOLD_BY_NEWCOMER):
            peer = peer_named(f"peer {number}")
            world.channel(peer).answer("news", listener(peer))
        planner = peer_named("peer 7")
        await world.board(planner).publish(lease(1))
        own = membership_of(world, "me")
        await own.refresh()
        await own.tell_some()
        assert planner in told
        assert TOLD_BY_NEWCOMER <= len(told) <= TOLD_BY_NEWCOMER + 1

    asyncio.run(story())
