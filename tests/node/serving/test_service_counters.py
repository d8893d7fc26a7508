"""ServiceCounters: a volunteer reads whether he is of use, and a quiet hour once an hour."""

from node.serving.service_counters import QUIET_SECONDS, ServiceCounters


def test_what_was_served_is_told_once() -> None:
    counters = ServiceCounters()
    assert counters.take(0.0) == ""
    counters.sessions, counters.tokens = 3, 412
    assert counters.take(60.0) == "3 requests, 412 tokens in the last minute"
    assert counters.take(120.0) == ""
    counters.sessions = counters.tokens = 1
    assert counters.take(180.0) == "1 request, 1 token in the last minute"


def test_a_quiet_hour_is_told_once_an_hour() -> None:
    counters = ServiceCounters()
    told = [counters.take(60.0 * minute) for minute in range(125)]
    assert [words for words in told if words] == ["no request in the last hour"] * 2
    assert told.index("no request in the last hour") == QUIET_SECONDS / 60
    counters.tokens = 5
    assert counters.take(7600.0) == "0 requests, 5 tokens in the last minute"
    assert counters.take(7600.0 + QUIET_SECONDS - 1) == ""
