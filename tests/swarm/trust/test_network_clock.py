"""NetworkClock, and boards whose machines' clocks jump."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from swarm.dht.dht_board import DhtBoard
from swarm.records import Advert, Lease
from swarm.trust.network_clock import CLOCK, NetworkClock
from tests.swarm.dht.dht_world import DhtWorld


class Machine:
    """A wall clock that a test makes jump, over time that goes on."""

    def __init__(self) -> None:
        self.jump = 0.0
        self.clock = NetworkClock(self.wall, CLOCK.now)

    def wall(self) -> float:
        return CLOCK.now() + self.jump


class Hands:
    """A machine whose two clocks a test moves."""

    def __init__(self) -> None:
        self.wall, self.ticks = 5000.0, 10.0
        self.clock = NetworkClock(lambda: self.wall, lambda: self.ticks)


@pytest.fixture
def hands() -> Hands:
    return Hands()


def test_time_goes_on_with_the_monotonic_clock(hands: Hands) -> None:
    hands.ticks += 7
    assert hands.clock.now() == 5007.0


def test_a_steered_clock_is_followed(hands: Hands) -> None:
    hands.wall += 0.9
    assert not hands.clock.has_jumped
    assert hands.clock.settle([0.0, 0.0]) == pytest.approx(0.9)
    assert hands.clock.now() == pytest.approx(5000.9)


@pytest.mark.parametrize("jump", [120.0, 3600.0, -120.0, -3600.0])
def test_a_jump_is_followed_if_most_peers_made_it_too(hands: Hands, jump: float) -> None:
    hands.wall += jump
    assert hands.clock.has_jumped
    assert hands.clock.settle([0.1, -0.2, jump]) == 0.0
    assert hands.clock.now() == 5000.0
    assert hands.clock.settle([jump, jump + 0.3, 1e9]) == jump
    assert hands.clock.now() == 5000.0 + jump


def test_nobody_to_ask_means_to_follow(hands: Hands) -> None:
    hands.wall += 3600
    assert hands.clock.settle() == 3600


def test_liars_move_nobody_to_a_time_of_their_own(hands: Hands) -> None:
    hands.wall += 3600
    hands.clock.settle([86400.0] * 7)
    assert hands.clock.now() in (5000.0, 8600.0)


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(30):
            await story()

    asyncio.run(in_time())


async def board_on(world: DhtWorld, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> DhtBoard:
    monkeypatch.setattr("swarm.dht.dht_board.CLOCK", machine.clock)
    return await world.board()


@pytest.mark.parametrize("jump", [120.0, 3600.0])
@pytest.mark.parametrize("checks", [0, 1])
def test_a_machine_whose_clock_jumps_and_is_put_right_publishes_all_the_time(
    jump: float, checks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        world, machine = DhtWorld(), Machine()
        others = [await board_on(world, Machine(), monkeypatch) for _ in range(2)]
        board = await board_on(world, machine, monkeypatch)
        for term, ahead in enumerate((0.0, jump, 0.0, -jump, 0.0)):
            machine.jump = ahead
            for _ in range(checks):
                await board._check_clock()
            await board.publish(Lease(term, 0.0))
            for other in others:
                assert await other.read(Lease) == {board.peer: Lease(term, 0.0)}
            await others[0].publish(Advert("d" * 64, [], term))
            assert (await board.read(Advert))[others[0].peer].term == term
        for each in (board, *others):
            await each.close()

    run(story)


@pytest.mark.parametrize("jump", [120.0, 3600.0])
def test_a_swarm_whose_clocks_all_jump_follows_and_comes_back(
    jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        world, machines = DhtWorld(), [Machine() for _ in range(3)]
        monkeypatch.setattr("swarm.dht.dht_protocol.CLOCK", machines[0].clock)
        boards = [await board_on(world, machine, monkeypatch) for machine in machines]
        for term, ahead in enumerate((0.0, jump, 0.0)):
            for machine in machines:
                machine.jump = ahead
            for board in boards:
                await board._check_clock()
            assert not any(machine.clock.has_jumped for machine in machines)
            await boards[1].publish(Lease(term, 0.0))
            for board in boards:
                assert await board.read(Lease) == {boards[1].peer: Lease(term, 0.0)}
        for each in boards:
            await each.close()

    run(story)


def test_a_lonely_board_follows_and_its_old_records_do_not_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fault: after the jump was taken back, no record was legal for as long as it had been."""

    async def story() -> None:
        world, machine = DhtWorld(), Machine()
        monkeypatch.setattr("swarm.dht.dht_protocol.CLOCK", machine.clock)
        board = await board_on(world, machine, monkeypatch)
        for term, ahead in enumerate((0.0, 3600.0, 0.0)):
            machine.jump = ahead
            await board._check_clock()
            await board.publish(Lease(term, 0.0))
            assert await board.read(Lease) == {board.peer: Lease(term, 0.0)}
        await board.close()

    run(story)


def test_a_newcomer_is_told_the_time_of_the_swarm_and_not_of_a_jumped_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        world, machine = DhtWorld(), Machine()
        host = await board_on(world, machine, monkeypatch)
        machine.jump = 3600.0
        newcomer = await board_on(world, Machine(), monkeypatch)
        assert newcomer.neighbours == 1
        for each in (host, newcomer):
            await each.close()

    run(story)
