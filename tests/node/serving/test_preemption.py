"""When a stage is full, the client that holds most gives way to those that hold less."""

from dataclasses import replace

import pytest

from node.serving.stage_server import RETRY_SECONDS, SESSIONS_PER_RETRY, WAIT_SECONDS
from node.worker.messages import Failed, Release, Reserve, Reserved
from swarm.wire.messages import Busy, Opened
from tests.node.conftest import RunStand
from tests.node.stands import CLIENT, STRANGER, Stand


async def hold(stand: Stand, sender: str, names: list[str]) -> None:
    """Let a client hold sessions of 250 tokens."""
    for name in names:
        opened = replace(stand.open(session=name), capacity=250)
        await stand.send(opened, sender=sender)
        await stand.answer(Reserved(stand.name(name, client=sender), 900))


async def ask(stand: Stand, sender: str, name: str, *, has_room: bool) -> None:
    """Let a client ask for one more; the worker answers if it is asked."""
    before = stand.worker.count(Reserve)
    await stand.send(replace(stand.open(session=name), capacity=250), sender=sender)
    if stand.worker.count(Reserve) > before:
        code = "" if has_room else "no_room"
        await stand.answer(
            Reserved(stand.name(name, client=sender), 0, code, "full" if code else "")
        )


def sessions_of(stand: Stand) -> list[str]:
    return [session.message.session for session in stand.server._sessions]


def test_the_latest_session_of_the_greedy_client_gives_way_to_a_newcomer(
    at_stand: RunStand,
) -> None:
    async def story(stand: Stand) -> None:
        await hold(stand, STRANGER, ["g0", "g1", "g2", "g3"])
        await ask(stand, CLIENT, "h", has_room=False)
        assert stand.worker.last(Release).session == stand.name("g3", client=STRANGER)
        assert stand.ears[STRANGER].last(Busy).session == "g3"
        assert stand.client.last(Busy).session == "h"
        await ask(stand, STRANGER, "g4", has_room=True)  # room is kept for the other one
        assert stand.ears[STRANGER].last(Busy).reason == "Others that hold less wait for room."
        await ask(stand, CLIENT, "h", has_room=True)
        assert stand.client.last(Opened).session == "h"
        assert sessions_of(stand) == ["g0", "g1", "g2", "h"]
        await ask(stand, STRANGER, "g5", has_room=True)  # nobody waits any more
        assert stand.ears[STRANGER].last(Opened).session == "g5"

    at_stand(story)


def test_nobody_gives_way_to_a_client_that_would_hold_as_much(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await hold(stand, CLIENT, ["a0", "a1"])
        await hold(stand, STRANGER, ["b0", "b1"])
        await ask(stand, CLIENT, "a2", has_room=False)
        await ask(stand, STRANGER, "b2", has_room=False)
        assert sessions_of(stand) == ["a0", "a1", "b0", "b1"]
        assert stand.worker.count(Release) == 0

    at_stand(story)


def test_a_client_that_holds_much_asks_less_often_for_more_unless_room_is_kept_for_it(
    at_stand: RunStand,
) -> None:
    async def story(stand: Stand) -> None:
        stand.serve(free_tokens=1_000_000)
        await hold(stand, STRANGER, [f"g{number}" for number in range(4 * SESSIONS_PER_RETRY)])
        await ask(stand, STRANGER, "more", has_room=False)
        told = stand.ears[STRANGER].last(Busy).retry_after_seconds
        assert 5 * RETRY_SECONDS <= told <= 10 * RETRY_SECONDS
        await hold(stand, CLIENT, [f"h{number}" for number in range(2 * SESSIONS_PER_RETRY)])
        await ask(stand, CLIENT, "h", has_room=False)  # the other one gives way
        told = stand.client.last(Busy).retry_after_seconds
        assert RETRY_SECONDS <= told <= 2 * RETRY_SECONDS < WAIT_SECONDS

    at_stand(story)


def test_a_session_that_finds_no_room_to_grow_makes_the_greedy_client_give_way(
    at_stand: RunStand,
) -> None:
    async def story(stand: Stand) -> None:
        await hold(stand, STRANGER, ["g0", "g1", "g2"])
        await hold(stand, CLIENT, ["h"])
        await stand.answer(Failed(stand.name("h"), "no_room", "No room to grow."))
        assert stand.client.last(Busy).session == "h"
        assert sessions_of(stand) == ["g0", "g1"]

    at_stand(story)


def test_all_seats_taken_by_one_client_leave_one_for_another(
    at_stand: RunStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.serving.session_table.SESSIONS_CAP", 4)

    async def story(stand: Stand) -> None:
        await hold(stand, STRANGER, ["g0", "g1", "g2", "g3"])
        await ask(stand, CLIENT, "h", has_room=True)
        assert sessions_of(stand) == ["g0", "g1", "g2", "h"]
        assert stand.client.last(Opened).session == "h"

    at_stand(story)


def test_room_is_kept_for_a_while_only(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await hold(stand, STRANGER, ["g0", "g1", "g2", "g3"])
        await ask(stand, CLIENT, "h", has_room=False)
        stand.server._waiting = {
            peer: until - WAIT_SECONDS for peer, until in stand.server._waiting.items()
        }
        await ask(stand, STRANGER, "g4", has_room=True)
        assert stand.ears[STRANGER].last(Opened).session == "g4"

    at_stand(story)
