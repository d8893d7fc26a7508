"""A peer gets in by whoever answers, says what it tried, comes back, and finds who is missing."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hivemind.dht.protocol import ValidationError

from swarm.dht import bootstrap
from swarm.dht.bootstrap import (
    KNOCK_SECONDS,
    PAUSES_SECONDS,
    Attempt,
    Bootstrap,
    KnownPeers,
    Round,
    TrySchedule,
    chosen,
)
from swarm.errors import BadInput, Unreachable
from swarm.p2p.address_book import AddressBook
from swarm.testing.memory_network import peer_named

OWN, OAK, ELM, ASH = map(peer_named, ("own", "oak", "elm", "ash"))
CLOCK = ValidationError("(local: 100.00000, peer: 160.00000)")


def at(number: int, peer: str = OAK) -> str:
    return f"/ip4/10.0.0.{number}/tcp/4001/p2p/{peer}"


@dataclass
class World:
    """Who listens where, who is of the swarm, and what one peer did and said."""

    listening: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)
    refusals: dict[str, ValidationError] = field(default_factory=dict)
    met: set[str] = field(default_factory=set)
    dialed: list[str] = field(default_factory=list)
    knocks: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    now: float = 1000.0
    at_once: int = 0
    most_at_once: int = 0
    peer: str = OWN

    async def problem_at(self, address: str) -> str:
        self.knocks.append(address)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        return "" if address in self.listening else "refused"

    async def connect(self, address: str) -> None:
        self.dialed.append(address)

    async def greet(self, peer: str) -> bool:
        if refusal := self.refusals.get(peer):
            raise refusal
        if peer in self.members:
            self.met.add(peer)
        return peer in self.members

    def join(self, address: str, peer: str = OAK) -> None:
        self.listening.add(address)
        self.members.add(peer)

    def bootstrap(self, *invited: str, may_be_alone: bool = True, book: Any = None) -> Bootstrap:
        say = self.said.append if may_be_alone else None
        return Bootstrap(
            cast("Any", self),
            self.greet,
            lambda: frozenset(self.met),
            KnownPeers(invited, say_alone=say),
            book or AddressBook(None, "swarm", OWN),
            clock=lambda: self.now,
        )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose clock only its tests move."""
    made = World()
    monkeypatch.setattr(bootstrap, "GREETING_SECONDS", 0.0)
    return made


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 20))


async def pass_seconds(
    world: World, ours: Bootstrap, seconds: int, until: Callable[[], bool] = bool
) -> None:
    """What `keep` does in so many seconds, or until something holds."""
    for _ in range(seconds):
        world.now += 1.0
        present = frozenset(world.met)
        await ours._look(present)
        ours._note_company(frozenset(world.met))
        if until():
            return


# ---------------------------------------------------------------- the schedule


def test_tries_come_soon_at_first_and_then_ever_less_often() -> None:
    now = [0.0]
    schedule = TrySchedule(lambda: now[0])
    pauses = []
    for _ in range(len(PAUSES_SECONDS) + 2):
        pauses.append(schedule.pause_seconds)
        assert not schedule.is_due
        now[0] += schedule.pause_seconds
        assert schedule.is_due
        schedule.note_try()
    assert pauses == [5, 15, 45, 120, 300, 300, 300]
    schedule.begin()
    assert schedule.pause_seconds == 5


def test_the_best_addresses_are_in_every_round_and_the_rest_take_turns() -> None:
    addresses = [str(number) for number in range(20)]
    assert chosen(addresses, 8, 0) == addresses[:8]
    rounds = [chosen(addresses, 8, number) for number in range(4)]
    assert all(each[:4] == addresses[:4] and len(each) == 8 for each in rounds)
    assert set().union(*rounds) == set(addresses)
    assert chosen(addresses[:3], 8, 5) == addresses[:3]


# ---------------------------------------------------------------- the first round


def test_one_that_answers_is_enough(world: World) -> None:
    async def story() -> None:
        world.join(at(2, ELM), ELM)
        ours = world.bootstrap(at(1), at(2, ELM))
        assert [each.address for each in (await ours.enter()).welcomes] == [at(2, ELM)]
        assert ours.joined.is_set()
        assert world.dialed == [at(2, ELM)]
        assert world.said == []

    run(story())


def test_who_may_be_alone_says_what_was_tried_and_what_to_do(world: World) -> None:
    async def story() -> None:
        ours = world.bootstrap(*(at(number, peer_named(str(number))) for number in range(1, 6)))
        await ours.enter()
        assert not ours.joined.is_set()
        (line,) = world.said
        assert line == (
            "alone: none of 5 addresses answers (10.0.0.1:4001 refused, 10.0.0.2:4001 refused,"
            " 10.0.0.3:4001 refused and 2 more); trying again in 5 s; ask for a fresh invite,"
            " or check the network"
        )

    run(story())


def test_who_may_not_be_alone_is_told_the_same_as_an_error(world: World) -> None:
    with pytest.raises(Unreachable, match=r"10\.0\.0\.1:4001 refused") as caught:
        run(_entered(world.bootstrap(at(1), may_be_alone=False)))
    assert "invite" in caught.value.next_step


def test_an_invite_that_leads_to_strangers_is_refused_at_once(world: World) -> None:
    world.listening.add(at(1))
    with pytest.raises(Unreachable, match="answers, but not for this swarm"):
        run(_entered(world.bootstrap(at(1), at(2, ELM))))


def test_remembered_peers_that_moved_on_keep_nobody_out(world: World) -> None:
    book = AddressBook(None, "swarm", OWN)
    book.note(OAK, [at(1)])
    world.listening.add(at(1))
    run(_entered(world.bootstrap(book=book)))
    assert "answers, but not for this swarm" in world.said[0]


def test_a_wrong_clock_keeps_its_own_error(world: World) -> None:
    world.listening.add(at(1))
    world.refusals[OAK] = CLOCK
    with pytest.raises(BadInput, match=r"60\.0 s behind"):
        run(_entered(world.bootstrap(at(1))))


def test_one_that_calls_the_clock_wrong_is_outvoted(world: World) -> None:
    welcome, refused = Attempt(at(1)), Attempt(at(2, ELM), "refuses us", CLOCK)
    assert Round((welcome, refused)).refusal is None
    assert Round((refused,)).refusal is CLOCK


def test_a_founder_of_whom_nobody_knows_says_nothing(world: World) -> None:
    async def story() -> None:
        ours = world.bootstrap()
        await ours.enter()
        await pass_seconds(world, ours, 1000)
        assert world.said == world.knocks == []

    run(story())


def test_few_are_tried_at_a_time_and_all_within_the_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_address: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(bootstrap, "ALONE_SECONDS", 0.2)
    addresses = [at(number, peer_named(str(number))) for number in range(1, 30)]
    run(_entered(world.bootstrap(*addresses)))
    assert len(world.knocks) == 29
    assert world.most_at_once <= bootstrap.AT_ONCE
    monkeypatch.setattr(world, "connect", hang)
    world.listening |= set(addresses)
    run(_entered(world.bootstrap(*addresses)))
    assert "10.0.0.1:4001 no answer" in world.said[-1]


def test_the_best_address_of_a_peer_does_not_wait_for_the_others(world: World) -> None:
    async def slow(address: str) -> str:
        if address != at(3):
            await asyncio.Event().wait()
        return ""

    world.join(at(3))
    world.problem_at = slow  # type: ignore[method-assign]
    run(_entered(ours := world.bootstrap(at(1), at(2), at(3))))
    assert ours.joined.is_set()


# ---------------------------------------------------------------- later


def test_a_peer_that_comes_is_found_at_the_next_try(world: World) -> None:
    async def story() -> None:
        ours = world.bootstrap(at(1))
        await ours.enter()
        await pass_seconds(world, ours, 6)
        assert len(world.said) == 2
        assert "trying again in 15 s" in world.said[1]
        world.join(at(1))
        await pass_seconds(world, ours, 16)
        assert ours.joined.is_set()
        assert world.said[2:] == ["joined: 1 other peer is there"]

    run(story())


def test_who_is_alone_for_long_hears_at_a_knock_that_a_peer_is_back(world: World) -> None:
    async def story() -> None:
        ours = world.bootstrap(at(1))
        await ours.enter()
        await pass_seconds(world, ours, 400)
        assert len(world.said) == 1 + 4  # at once, and after 5, 15, 45 and 120 s
        world.join(at(1))
        await pass_seconds(world, ours, int(KNOCK_SECONDS) + 1)
        assert ours.joined.is_set()

    run(story())


def test_a_stranger_who_listens_is_not_knocked_at_again(world: World) -> None:
    async def story() -> None:
        book = AddressBook(None, "swarm", OWN)
        book.note(OAK, [at(1)])
        world.listening.add(at(1))
        ours = world.bootstrap(book=book)
        await ours.enter()
        await pass_seconds(world, ours, 400)
        assert len(world.dialed) == 1 + 4  # in the rounds alone

    run(story())


def test_somebody_who_dials_us_is_company_too(world: World) -> None:
    async def story() -> None:
        ours = world.bootstrap(at(1))
        await ours.enter()
        world.met.add(ASH)
        await pass_seconds(world, ours, 1)
        assert ours.joined.is_set()

    run(story())


def test_after_a_loss_the_lost_are_looked_for_soon(world: World) -> None:
    async def story() -> None:
        book = AddressBook(None, "swarm", OWN)
        book.note_met(ELM, [at(2, ELM)])
        book.note(ASH, [at(3, ASH)])  # long gone: it is tried every five minutes
        world.join(at(1))
        ours = world.bootstrap(at(1), book=book)
        await ours.enter()
        world.met.add(ELM)
        await pass_seconds(world, ours, 500)
        world.knocks.clear()
        world.met = {OAK}  # the other half of a network that fell into two parts
        await pass_seconds(world, ours, 6)
        assert world.knocks == [at(2, ELM), at(3, ASH)]
        world.join(at(2, ELM), ELM)
        await pass_seconds(world, ours, 16)
        assert world.met == {OAK, ELM}

    run(story())


def test_who_has_company_tries_few_and_says_nothing_of_the_missing(world: World) -> None:
    async def story() -> None:
        book = AddressBook(None, "swarm", OWN)
        for number in range(100):
            book.note(peer_named(str(number)), [at(number, peer_named(str(number)))])
        world.join(at(200))
        ours = world.bootstrap(at(200), book=book)
        await ours.enter()
        world.knocks.clear()
        await pass_seconds(world, ours, 300)
        assert 0 < len(world.knocks) <= 5 * bootstrap.TRIED_IN_COMPANY
        assert world.said == []

    run(story())


def test_where_nobody_is_missing_nobody_is_tried(world: World) -> None:
    async def story() -> None:
        world.join(at(1))
        ours = world.bootstrap(at(1), at(9, OWN))
        await ours.enter()
        tried = len(world.knocks)
        await pass_seconds(world, ours, 1000)
        assert len(world.knocks) == tried

    run(story())


def test_a_clock_that_goes_wrong_while_alone_is_told(world: World) -> None:
    async def story() -> None:
        ours = world.bootstrap(at(1))
        await ours.enter()
        world.listening.add(at(1))
        world.refusals[OAK] = CLOCK
        await pass_seconds(world, ours, 6)
        assert "This machine's clock is 60.0 s behind the swarm's." in world.said[-1]
        assert "Trying again in 15 s" in world.said[-1]

    run(story())


async def _entered(ours: Bootstrap) -> None:
    await ours.enter()
