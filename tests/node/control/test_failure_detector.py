"""Failure detector: who is asked in a small swarm and in a crowd, and how much that is."""

from collections.abc import Callable

import pytest

from node.control.failure_detector import (
    ASKED_AT_ONCE,
    BEST_ASKED,
    CROWD,
    LATELY_SECONDS,
    PLANNER_RATE,
    SELDOM_SECONDS,
    Contact,
    asked_by_planner,
    asked_by_standby,
    crowding,
)

LOOK_SECONDS = 5.0


def peers(number: int) -> list[str]:
    return [f"peer{at:04}" for at in range(number)]


def anybody(_peer: str) -> bool:
    return True


def questions_per_second(ask: Callable[[dict[str, Contact], float], list[str]]) -> float:
    """How many there are in the long run, if all peers answer."""
    contacts: dict[str, Contact] = {}
    asked = 0
    for look in range(1000):
        now = 1000.0 + look * LOOK_SECONDS
        for peer in ask(contacts, now):
            contacts.setdefault(peer, Contact()).asked_at = contacts[peer].heard_at = now
            asked += look >= 500
    return asked / 500 / LOOK_SECONDS


@pytest.mark.parametrize("number", [10, 100, 1000])
def test_a_standby_asks_no_more_in_a_crowd(number: int) -> None:
    there = peers(number)
    rate = questions_per_second(
        lambda contacts, now: asked_by_standby(there, contacts, now, anybody)
    )
    assert 0.1 < rate <= BEST_ASKED / LOOK_SECONDS + 1.0 + min(2.0, number / SELDOM_SECONDS)


def test_a_planner_asks_a_crowd_at_a_rate_that_a_daemon_bears() -> None:
    there = peers(2000)
    rate = questions_per_second(lambda contacts, now: asked_by_planner(there, contacts, now))
    assert PLANNER_RATE / 2 <= rate <= PLANNER_RATE * 1.1


def test_a_planner_of_a_small_swarm_asks_everybody_at_every_look() -> None:
    there = peers(CROWD)
    contacts = {peer: Contact(heard_at=99.0, asked_at=99.0) for peer in there}
    assert asked_by_planner(there, contacts, 99.5) == there


def test_a_planner_asks_whoever_has_just_not_answered_at_once_in_a_crowd_too() -> None:
    there = peers(1000)
    contacts = {peer: Contact(heard_at=99.0, asked_at=99.0) for peer in there}
    contacts[there[7]].misses = 1
    assert asked_by_planner(there, contacts, 99.5) == [there[7]]


def test_newcomers_of_a_crowd_agree_soon_on_who_is_best_in_rank() -> None:
    there, contacts = peers(1000), dict[str, Contact]()
    for look in range(3 * BEST_ASKED):
        now = 1000.0 + look * LOOK_SECONDS
        for peer in asked_by_standby(there, contacts, now, anybody):
            contacts.setdefault(peer, Contact()).asked_at = contacts[peer].heard_at = now
    best = there[:BEST_ASKED]
    assert all(contacts[peer].is_heard(now) for peer in best)
    assert now - 1000.0 > LATELY_SECONDS


def test_a_small_swarm_is_met_in_one_look() -> None:
    there = peers(ASKED_AT_ONCE)
    assert set(asked_by_standby(there, {}, 0.0, anybody)) == set(there)


def test_a_crowd_stretches_pauses_in_proportion() -> None:
    assert crowding(3) == crowding(CROWD) == 1.0
    assert crowding(10 * CROWD) == 10.0


def test_who_was_lost_is_asked_again_while_there_are_still_strangers_in_a_crowd() -> None:
    there = peers(1000)
    contacts = {there[500]: Contact(misses=2, asked_at=0.0)}
    assert there[500] in asked_by_standby(there, contacts, 100.0, anybody)


def test_a_peer_that_is_not_there_any_more_is_not_asked() -> None:
    gone = {"gone": Contact(heard_at=0.0, asked_at=0.0)}
    assert asked_by_standby(peers(3), gone, 100.0, anybody) == peers(3)
