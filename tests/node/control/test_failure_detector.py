"""Failure detector: who is asked in a small swarm and in a crowd, and how much that is."""

from collections.abc import Callable

import pytest

from node.control.failure_detector import (
    ASKED_AT_ONCE,
    BEST_ASKED,
    CROWD,
    LATELY_SECONDS,
    MISSES,
    PLANNER_RATE,
    SELDOM_SECONDS,
    Contacts,
    asked_by_planner,
    asked_by_standby,
    crowding,
)

LOOK_SECONDS = 5.0


def peers(number: int) -> list[str]:
    return [f"peer{at:04}" for at in range(number)]


def ranked(number: int) -> dict[str, int]:
    return {peer: place for place, peer in enumerate(peers(number))}


def hear(contacts: Contacts, peer: str, now: float) -> None:
    """Ask a peer, which answers at once."""
    contacts.note_answer(peer, contacts.note_question(peer, now), 0, b"", now)


def all_heard(there: list[str], now: float) -> Contacts:
    contacts = Contacts()
    for peer in there:
        hear(contacts, peer, now)
    return contacts


def anybody(_peer: str) -> bool:
    return True


def questions_per_second(ask: Callable[[Contacts, float], list[str]]) -> float:
    """How many there are in the long run, if all peers answer."""
    contacts = Contacts()
    asked = 0
    for look in range(1000):
        now = 1000.0 + look * LOOK_SECONDS
        for peer in ask(contacts, now):
            hear(contacts, peer, now)
            asked += look >= 500
    return asked / 500 / LOOK_SECONDS


@pytest.mark.parametrize("number", [10, 100, 1000])
def test_a_standby_asks_no_more_in_a_crowd(number: int) -> None:
    there = ranked(number)
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
    contacts = all_heard(there, 99.0)
    assert asked_by_planner(there, contacts, 99.5) == there


def test_a_planner_asks_whoever_has_just_not_answered_at_once_in_a_crowd_too() -> None:
    there = peers(1000)
    contacts = all_heard(there, 99.0)
    contacts.note_silence(there[7], contacts[there[7]])
    assert asked_by_planner(there, contacts, 99.5) == [there[7]]


def test_newcomers_of_a_crowd_agree_soon_on_who_is_best_in_rank() -> None:
    there, contacts = ranked(1000), Contacts()
    for look in range(3 * BEST_ASKED):
        now = 1000.0 + look * LOOK_SECONDS
        for peer in asked_by_standby(there, contacts, now, anybody):
            hear(contacts, peer, now)
    best = list(there)[:BEST_ASKED]
    assert all(contacts[peer].is_heard(now) for peer in best)
    assert now - 1000.0 > LATELY_SECONDS


def test_a_small_swarm_is_met_in_one_look() -> None:
    there = ranked(ASKED_AT_ONCE)
    assert set(asked_by_standby(there, Contacts(), 0.0, anybody)) == set(there)


def test_a_crowd_stretches_pauses_in_proportion() -> None:
    assert crowding(3) == crowding(CROWD) == 1.0
    assert crowding(10 * CROWD) == 10.0


def test_who_was_lost_is_asked_again_while_there_are_still_strangers_in_a_crowd() -> None:
    there, contacts = peers(1000), Contacts()
    stranger = contacts.note_question(there[500], 0.0)
    for _ in range(MISSES):
        contacts.note_silence(there[500], stranger)
    assert there[500] in asked_by_standby(ranked(1000), contacts, 100.0, anybody)


def test_a_peer_that_is_not_there_any_more_is_not_asked() -> None:
    gone = all_heard(["gone"], 0.0)
    assert asked_by_standby(ranked(3), gone, 100.0, anybody) == peers(3)


def test_contacts_know_without_a_search_who_is_lost_and_who_was_heard_lately() -> None:
    contacts = all_heard(["anna", "bert", "carl"], 0.0)
    hear(contacts, "anna", 10.0)
    for misses in range(1, MISSES + 1):
        contacts.note_silence("bert", contacts["bert"])
        assert ("bert" in contacts.missed) == (misses < MISSES)
    assert contacts.lost == {"bert"}
    assert contacts.heard_lately(5.0).keys() == {"anna", "carl"}
    assert contacts.heard_lately(LATELY_SECONDS).keys() == {"anna"}
    hear(contacts, "bert", LATELY_SECONDS)
    assert not contacts.lost
    assert list(contacts.peers) == ["carl", "anna", "bert"]


def test_only_what_matters_to_others_counts_as_a_change() -> None:
    contacts = all_heard(["anna"], 0.0)
    before = contacts.changes
    hear(contacts, "anna", 5.0)
    contacts.note_silence("anna", contacts["anna"])
    assert contacts.changes == before
    contacts.note_answer("anna", contacts["anna"], 7, b"", 6.0)
    assert contacts.changes == before + 1
    hear(contacts, "anna", 100.0)
    assert contacts.changes == before + 2


def test_an_answer_of_somebody_who_was_forgotten_meanwhile_is_not_kept() -> None:
    contacts = Contacts()
    contact = contacts.note_question("anna", 0.0)
    contacts.forget_others(set())
    contacts.note_answer("anna", contact, 0, b"", 1.0)
    assert not contacts.heard_lately(1.0)


def test_whoever_has_just_not_answered_is_asked_again_at_once_even_in_a_crowd() -> None:
    there = peers(1000)
    contacts = all_heard(there, 0.0)
    contacts.note_silence(there[900], contacts.note_question(there[900], 99.0))
    assert there[900] in asked_by_standby(ranked(1000), contacts, 99.5, anybody)
