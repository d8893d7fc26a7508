"""The schedule: nothing is lost or overtaken within a session, and nobody waits for long."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from node.worker.messages import Compute, Release, Reserve
from node.worker.scheduler import CHUNK_TOKENS, DECODE_TOKENS, MOST_TOKENS, Arrived, Schedule
from swarm.wire.messages import Message


def rows(session: str, tokens: int, position: int = 0) -> Compute:
    return Compute(session, position, tokens, True, "i32")


def prompt(session: str, tokens: int) -> list[Compute]:
    """A prompt as its client cuts it."""
    starts = range(0, tokens, CHUNK_TOKENS)
    return [rows(session, min(CHUNK_TOKENS, tokens - start), start) for start in starts]


def scheduled(orders: Sequence[Message], **limits: int) -> Schedule:
    made = Schedule(**limits)
    for number, order in enumerate(orders):
        made.add(Arrived(order, float(number)))
    return made


def next_orders(schedule: Schedule) -> list[Message]:
    return [each.order for each in schedule.next_step()]


def all_steps(schedule: Schedule) -> list[list[Message]]:
    steps = []
    while schedule:
        steps.append(next_orders(schedule))
    return steps


def session_of(order: Message) -> str:
    return str(getattr(order, "session", ""))


def rows_in(step: Sequence[Message]) -> int:
    return sum(order.tokens for order in step if isinstance(order, Compute))


sessions = st.sampled_from(["a", "b", "c", "d"])
computes = st.builds(rows, sessions, st.one_of(st.integers(1, 20), st.integers(1, CHUNK_TOKENS)))
some_orders = st.lists(
    st.one_of(
        st.builds(lambda s: Reserve(s, 64, 0, {}), sessions), st.builds(Release, sessions), computes
    ),
    max_size=30,
)


@given(some_orders, st.integers(0, 3))
def test_a_session_keeps_its_order_and_is_in_a_step_once(
    orders: list[Message], most_sessions: int
) -> None:
    steps = all_steps(scheduled(orders, most_sessions=most_sessions))
    run = [order for step in steps for order in step]
    for session in "abcd":
        mine = [order for order in orders if session_of(order) == session]
        releases = [at for at, order in enumerate(mine) if isinstance(order, Release)]
        last = releases[-1] if releases else -1
        wanted = [o for at, o in enumerate(mine) if at > last or not isinstance(o, Compute)]
        assert [order for order in run if session_of(order) == session] == wanted
    for step in steps:
        assert len({session_of(order) for order in step}) == len(step)
        assert 0 < len(step) <= (most_sessions or len(step))


@given(some_orders)
def test_a_step_never_exceeds_its_tokens_nor_one_chunk_of_prompts(orders: list[Message]) -> None:
    for step in all_steps(scheduled(orders)):
        chunks = [o for o in step if isinstance(o, Compute) and o.tokens > DECODE_TOKENS]
        assert rows_in(step) <= MOST_TOKENS
        assert rows_in(chunks) <= CHUNK_TOKENS


@given(st.lists(computes, max_size=20), st.integers(1, 100))
def test_every_decode_that_waits_is_in_the_next_step(others: list[Compute], decodes: int) -> None:
    mine = [rows(f"decode {number}", 1) for number in range(decodes)]
    step = next_orders(scheduled([*others, *mine]))
    assert all(order in step for order in mine)


def test_decodes_of_many_sessions_and_one_chunk_share_a_step() -> None:
    decodes = [rows(f"d{number}", 1) for number in range(20)]
    step = next_orders(scheduled([*prompt("long", 2048), *decodes]))
    assert step == [*decodes, rows("long", CHUNK_TOKENS)]


def test_chunks_of_long_prompts_take_turns() -> None:
    schedule = scheduled([*prompt("a", 1024), *prompt("b", 1024), *prompt("c", 512)])
    turns = [session_of(order) for step in all_steps(schedule) for order in step]
    assert turns == ["a", "b", "c", "a", "b", "c", "a", "b", "a", "b"]


def test_a_short_prompt_runs_before_the_next_chunk_of_a_long_one() -> None:
    schedule = scheduled(prompt("long", 2048))
    schedule.next_step()
    schedule.add(Arrived(rows("short", 40), 0.0))
    assert next_orders(schedule) == [rows("short", 40)]


def test_an_endless_row_of_short_prompts_does_not_starve_a_long_one() -> None:
    schedule = scheduled(prompt("long", 1024))
    steps = []
    for number in range(8):
        schedule.add(Arrived(rows(f"short {number}", 40), 0.0))
        steps += [[session_of(order) for order in next_orders(schedule)]]
    assert sum("long" in step for step in steps) >= 2


def test_short_prompts_share_a_step() -> None:
    shorts = [rows(f"s{number}", 32) for number in range(16)]
    assert [len(step) for step in all_steps(scheduled(shorts))] == [8, 8]


def test_decodes_beyond_a_step_take_turns_and_leave_prompts_their_half() -> None:
    decodes = [rows(f"d{number}", 1) for number in range(1000)]
    schedule = scheduled([*decodes, *prompt("long", 512)])
    first, second, third = (next_orders(schedule) for _ in range(3))
    assert first == [*decodes[:256], rows("long", 256)]
    assert second == [*decodes[256:512], rows("long", 256, 256)]
    assert third == decodes[512:]


def test_room_is_given_back_before_it_is_taken() -> None:
    orders = [Reserve("new", 64, 0, {}), Release("old")]
    assert next_orders(scheduled(orders)) == [orders[1], orders[0]]


def test_a_session_that_is_released_computes_no_more() -> None:
    schedule = scheduled([*prompt("gone", 2048), rows("here", 1)])
    schedule.add(Arrived(Release("gone"), 0.0))
    assert all_steps(schedule) == [[Release("gone"), rows("here", 1)]]


def test_rows_beyond_every_limit_are_cut() -> None:
    steps = all_steps(scheduled([rows("a", 9999), rows("b", 300)]))
    assert max(map(rows_in, steps)) == CHUNK_TOKENS
    assert sum(map(rows_in, steps)) == 9999 + 300


def test_one_session_a_step_takes_them_by_turn() -> None:
    schedule = scheduled([rows("a", 200), rows("b", 1), Release("c")], most_sessions=1)
    assert [session_of(step[0]) for step in all_steps(schedule)] == ["a", "b", "c"]


def test_only_decodes_that_are_alone_are_counted() -> None:
    schedule = scheduled([rows("a", 1), rows("a", 1, 1), rows("b", 4)])
    assert schedule.decodes == 2
    schedule.add(Arrived(rows("c", 100), 0.0))
    assert schedule.decodes == 0
    assert scheduled([]).decodes == 0


def test_a_step_takes_no_more_decodes_than_it_is_told() -> None:
    schedule = scheduled([*(rows(f"d{number}", 1) for number in range(5)), *prompt("long", 512)])
    assert schedule.decoding == [f"d{number}" for number in range(5)]
    first, second = ([session_of(each.order) for each in schedule.next_step(3)] for _ in range(2))
    assert first == ["d0", "d1", "d2", "long"]
    assert second == ["d3", "d4", "long"]


def test_a_chunk_longer_than_a_step_may_take_is_cut_and_its_parts_stay_in_order() -> None:
    ids = np.arange(200, dtype="<i4").tobytes()
    schedule = scheduled([Compute("a", 7, 200, True, "i32", body=ids), rows("b", 40)])
    parts: list[Compute] = []
    while schedule:
        (each,) = schedule.next_step(None, 64)
        assert isinstance(each.order, Compute)
        parts.append(each.order)
    assert [(each.session, each.position, each.tokens) for each in parts] == [
        ("b", 0, 40),
        ("a", 7, 64),
        ("a", 71, 64),
        ("a", 135, 64),
        ("a", 199, 8),
    ]
    assert [each.sample for each in parts[1:]] == [False, False, False, True]
    assert b"".join(bytes(each.body) for each in parts) == ids


@given(some_orders, st.sampled_from([32, 64, 128]))
def test_cutting_loses_no_row_and_keeps_every_session_in_order(
    orders: list[Message], most: int
) -> None:
    schedule, found = scheduled(orders), dict[str, int]()
    wanted = {session_of(order): 0 for order in orders}
    for each in [each for step in all_steps(scheduled(orders)) for each in step]:
        wanted[session_of(each)] += getattr(each, "tokens", 0)
    while schedule:
        step = [each.order for each in schedule.next_step(None, most)]
        chunks = [o for o in step if isinstance(o, Compute) and o.tokens > DECODE_TOKENS]
        assert rows_in(chunks) <= most
        for each in step:
            name = session_of(each)
            found[name] = found.get(name, 0) + getattr(each, "tokens", 0)
    assert found == wanted
