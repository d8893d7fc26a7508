"""Whose wish a pause is, and which word ends which: the owner's outlives every rule."""

import math

from node.owner.pauses import OWNER, Pauses

GAME, SOMEBODY = "`pgrep -x game` succeeds", "somebody is at work"


def test_a_node_that_nobody_wants_back_is_not_paused() -> None:
    assert Pauses().why(0.0) == ""
    assert Pauses().seconds_left(0.0) == math.inf


def test_the_owners_pause_lasts_until_he_ends_it_or_its_time_is_over() -> None:
    pauses = Pauses()
    pauses.pause(100.0)
    assert pauses.why(1e9) == OWNER
    pauses.pause(100.0, 60.0)  # a later word replaces the earlier one
    assert (pauses.why(159.0), pauses.seconds_left(159.0)) == (OWNER, 1.0)
    assert pauses.why(160.0) == ""
    pauses.pause(200.0)
    pauses.resume()
    assert pauses.why(201.0) == ""


def test_a_rule_ends_its_own_pause_and_never_the_owners() -> None:
    pauses = Pauses()
    pauses.note(GAME, wants=True)
    assert pauses.why(0.0) == GAME
    pauses.pause(0.0)
    pauses.note(GAME, wants=False)
    assert pauses.why(0.0) == OWNER


def test_as_long_as_one_rule_wants_a_pause_there_is_one() -> None:
    pauses = Pauses()
    pauses.note(GAME, wants=True)
    pauses.note(SOMEBODY, wants=True)
    pauses.note(GAME, wants=False)
    assert pauses.why(0.0) == SOMEBODY


def test_resuming_overrules_the_rules_of_now_until_their_cause_comes_again() -> None:
    pauses = Pauses()
    pauses.note(GAME, wants=True)
    pauses.resume()
    pauses.note(GAME, wants=True)  # it still runs
    assert pauses.why(0.0) == ""
    pauses.note(SOMEBODY, wants=True)  # that is another cause
    assert pauses.why(0.0) == SOMEBODY
    pauses.note(SOMEBODY, wants=False)
    pauses.note(GAME, wants=False)
    pauses.note(GAME, wants=True)  # a second game
    assert pauses.why(0.0) == GAME


def test_only_changes_are_news() -> None:
    pauses = Pauses()
    pauses.note(GAME, wants=False)
    assert not pauses.news.is_set()
    pauses.note(GAME, wants=True)
    assert pauses.news.is_set()
