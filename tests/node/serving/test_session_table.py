"""Sessions at a node: who may send what to which, decided without I/O."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.serving.session_table import (
    CAPACITY_CAP,
    IDLE_SECONDS,
    SESSIONS_CAP,
    Hop,
    SessionTable,
    StageSession,
    route_of,
    trouble_with,
)
from swarm.errors import RemoteProtocolError
from swarm.wire.messages import Cancel, Close, Open, Step

ROUTE: list[list[object]] = [["a", 0, 3], ["b", 3, 5], ["c", 5, 8]]
OPEN = Open("s", 2, b"key", stage=1, route=ROUTE, model="m", capacity=10)
STEP = Step("s", 2, b"key", stage=1, position=0, tokens=4, sample=False, dtype="f32")


def session_of(
    message: Open = OPEN, client: str = "client", seen_seconds: float = 0.0
) -> StageSession:
    return StageSession(message, client, route_of(message), device=0, seen_seconds=seen_seconds)


def test_a_route_that_covers_its_layers_in_order_is_read() -> None:
    assert route_of(OPEN) == (Hop("a", 0, 3), Hop("b", 3, 5), Hop("c", 5, 8))


@pytest.mark.parametrize(
    "route",
    [
        [],
        [["a", 1, 8]],
        [["a", 0, 3], ["b", 4, 8]],
        [["a", 0, 3], ["b", 2, 8]],
        [["a", 0, 0]],
        [["a", 0, 3], ["b", 3, 3]],
        [["a", 3, 0]],
        [["a", 0]],
        [["a", 0, 8, 1]],
        [[1, 0, 8]],
        [["a", "0", 8]],
        ["abc"],
        [None],
        [{"a": 1}],
    ],
)
def test_a_malformed_route_is_refused(route: list[list[object]]) -> None:
    with pytest.raises(RemoteProtocolError):
        route_of(replace(OPEN, route=route, stage=0))


@pytest.mark.parametrize("capacity", [0, CAPACITY_CAP + 1])
def test_a_capacity_out_of_range_is_refused(capacity: int) -> None:
    with pytest.raises(RemoteProtocolError, match="capacity"):
        route_of(replace(OPEN, capacity=capacity))


def test_a_stage_beyond_the_route_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="names no stage"):
        route_of(replace(OPEN, stage=3))


@given(st.lists(st.lists(st.one_of(st.integers(), st.text(), st.none()), max_size=4), max_size=4))
def test_no_route_of_a_stranger_raises_anything_else(route: list[list[object]]) -> None:
    try:
        hops = route_of(replace(OPEN, route=route, stage=0))
    except RemoteProtocolError:
        return
    assert hops[0].start == 0


def test_a_step_that_fits_is_no_trouble() -> None:
    assert trouble_with(STEP, session_of(), "a") == ""
    assert trouble_with(STEP, session_of(), "client") == ""


@pytest.mark.parametrize(
    ("step", "peer", "code"),
    [
        (replace(STEP, epoch=1), "a", "stale_epoch"),
        (replace(STEP, epoch=3), "a", "unknown_session"),
        (replace(STEP, key=b"other"), "a", "wrong_sender"),
        (STEP, "c", "wrong_sender"),
        (STEP, "stranger", "wrong_sender"),
        (replace(STEP, position=1), "a", "bad_frame"),
        (replace(STEP, tokens=0), "a", "bad_frame"),
        (replace(STEP, tokens=11), "a", "overflow"),
    ],
)
def test_a_step_that_does_not_fit_gets_its_code(step: Step, peer: str, code: str) -> None:
    assert trouble_with(step, session_of(), peer) == code


def test_a_step_without_a_seat_is_of_an_unknown_session() -> None:
    assert trouble_with(STEP, None, "a") == "unknown_session"


def test_a_repeated_step_is_seen_and_not_run_again() -> None:
    session = session_of()
    session.next_position = 4
    assert trouble_with(STEP, session, "a") == "seen"
    assert trouble_with(replace(STEP, position=4, tokens=6), session, "a") == ""
    assert trouble_with(replace(STEP, position=4, tokens=7), session, "a") == "overflow"


def test_the_hop_before_the_first_one_is_the_last_one() -> None:
    first = session_of(replace(OPEN, stage=0))
    assert first.may_send("c", Step)
    assert not first.may_send("b", Step)
    assert first.next_stage == 1
    assert not first.is_last
    last = session_of(replace(OPEN, stage=2))
    assert last.is_last
    assert last.next_stage == 0


def test_unlike_epochs_have_unlike_names_at_the_worker() -> None:
    one, other = session_of(), session_of(replace(OPEN, epoch=3))
    assert one.name != other.name


def test_unlike_clients_have_unlike_names_at_the_worker_that_end_in_the_epoch() -> None:
    one, other = session_of(), session_of(client="other")
    assert one.name != other.name
    assert one.name.endswith(":2")


def test_a_step_finds_its_seat_among_those_that_others_have_by_the_same_id() -> None:
    table, session = SessionTable(), session_of()
    strangers = [
        session_of(replace(OPEN, key=b"other"), client="stranger"),
        session_of(replace(OPEN, epoch=3), client="another"),
        session_of(replace(OPEN, route=[["x", 0, 3], *ROUTE[1:]]), client="third"),
    ]
    for each in (*strangers[:2], session, *strangers[2:]):
        table.add(each)
    assert table.for_step(STEP, "a") is session
    assert table.for_step(STEP, "client") is session
    table.remove(session)
    assert table.for_step(replace(STEP, key=b"none"), "a") is None
    assert table.for_step(STEP, "a") is strangers[1]
    assert trouble_with(STEP, strangers[1], "a") == "stale_epoch"
    for each in strangers:
        assert table.knows("s")
        table.remove(each)
    assert not table.knows("s")


def test_close_and_cancel_end_only_the_own_session_of_that_epoch_or_older() -> None:
    table = SessionTable()
    table.add(session_of())
    table.add(session_of(replace(OPEN, session="t"), client="other"))
    assert [
        session.message.session for session in table.ended_by(Close("s", 2, b"key"), "client")
    ] == ["s"]
    assert [
        session.message.session for session in table.ended_by(Cancel("s", 9, b"key"), "client")
    ] == ["s"]
    assert table.ended_by(Close("s", 1, b"key"), "client") == []
    assert table.ended_by(Close("s", 2, b"wrong"), "client") == []
    assert table.ended_by(Close("s", 2, b"key"), "other") == []


def test_a_worker_speaks_of_no_seat_that_is_gone() -> None:
    table, old, new = SessionTable(), session_of(), session_of(replace(OPEN, epoch=3))
    table.add(old)
    assert table.by_name(old.name, old.device) is old
    table.remove(old)
    table.add(new)
    table.remove(old)  # again: it changes nothing
    assert table.by_name(old.name, old.device) is None
    assert table.by_name(new.name, new.device) is new
    assert list(table) == [new]


def test_a_worker_speaks_of_the_seat_on_its_own_device() -> None:
    table = SessionTable()
    session = session_of()
    table.add(session)
    assert table.by_name(session.name, 0) is session
    assert table.by_name(session.name, 1) is None
    assert table.by_name(session_of(replace(OPEN, epoch=1)).name, 0) is None
    table.remove(session)
    table.remove(session)
    assert table.by_name(session.name, 0) is None


def test_a_seat_that_nobody_used_for_a_minute_is_idle() -> None:
    table = SessionTable()
    table.add(session_of(seen_seconds=100.0))
    assert table.idle(100.0 + IDLE_SECONDS) == []
    assert len(table.idle(100.1 + IDLE_SECONDS)) == 1


def test_seats_are_full_at_the_cap() -> None:
    table = SessionTable()
    for number in range(SESSIONS_CAP - 1):
        table.add(session_of(replace(OPEN, session=str(number))))
    assert not table.is_full
    table.add(session_of())
    assert table.is_full
    assert len(table) == SESSIONS_CAP


def test_nobody_goes_back_into_the_prompt() -> None:
    session = replace(session_of(), next_position=6, known=4)
    back = replace(STEP, tokens=1, rewinds=1)
    assert trouble_with(replace(back, position=4), session, "a") == ""
    assert trouble_with(replace(back, position=3), session, "a") == "seen"
