"""A node's tally: a volunteer reads whether he is of use, and a quiet hour is told once an hour."""

from node.serving.tally import QUIET_SECONDS, Tally


def test_what_was_served_is_told_once() -> None:
    tally = Tally()
    assert tally.take(0.0) == ""
    tally.sessions, tally.tokens = 3, 412
    assert tally.take(60.0) == "3 requests, 412 tokens in the last minute"
    assert tally.take(120.0) == ""
    tally.sessions = tally.tokens = 1
    assert tally.take(180.0) == "1 request, 1 token in the last minute"


def test_a_quiet_hour_is_told_once_an_hour() -> None:
    tally = Tally()
    told = [tally.take(60.0 * minute) for minute in range(125)]
    assert [words for words in told if words] == ["no request in the last hour"] * 2
    assert told.index("no request in the last hour") == QUIET_SECONDS / 60
    tally.tokens = 5
    assert tally.take(7600.0) == "0 requests, 5 tokens in the last minute"
    assert tally.take(7600.0 + QUIET_SECONDS - 1) == ""
