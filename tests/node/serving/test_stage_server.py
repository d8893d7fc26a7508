"""The server among scripted peers: who is opened, what is computed, what goes on to whom."""

from dataclasses import replace

import pytest

from node.serving.session_table import SESSIONS_CAP
from node.worker.messages import Compute, Computed, Failed, Release, Reserve, Reserved
from swarm.p2p.rate_limit import RateLimit
from swarm.wire.messages import Busy, Cancel, Close, Fail, Moved, Opened, Ping, Step, Token
from swarm.wire.token_ids import ids_of_bytes
from tests.node.conftest import RunStand
from tests.node.stands import (
    CLIENT,
    FIRST,
    KEY,
    LAST,
    MIDDLE,
    STRANGER,
    Stand,
    until,
)


def test_an_open_is_reserved_and_then_answered(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.send(stand.open())
        order = stand.worker.last(Reserve)
        assert (order.session, order.capacity, order.generated) == (stand.name(), 64, 0)
        assert ids_of_bytes(order.body) == [5, 6, 7]
        assert stand.client.heard == []
        await stand.answer(Reserved(stand.name(), 900))
        assert stand.client.heard == [Opened("s", 1, KEY, 1)]
        assert stand.server.sessions == 1
        (advert,) = stand.server.adverts()
        assert (advert.start, advert.end, advert.sessions) == (3, 5, 1)
        assert advert.free_tokens == 900

    at_stand(story)


@pytest.mark.parametrize("me", [MIDDLE, LAST])
def test_only_the_last_stage_is_told_how_to_sample(at_stand: RunStand, me: str) -> None:
    async def story(stand: Stand) -> None:
        await stand.send(stand.open())
        expected = {"max_tokens": 4} if me == LAST else {}
        assert stand.worker.last(Reserve).sampling == expected

    at_stand(story, me)


def test_a_step_is_computed_and_its_rows_go_to_the_next_stage(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(stand.step(), sender=FIRST)
        order = stand.worker.last(Compute)
        assert (order.session, order.position, order.tokens, order.sample) == (
            stand.name(),
            0,
            3,
            True,
        )
        assert ids_of_bytes(order.body) == [0, 1, 2]
        await stand.answer(stand.computed())
        passed = stand.ears[LAST].last(Step)
        assert (passed.stage, passed.position, passed.tokens, passed.sample) == (2, 0, 3, True)
        assert (passed.dtype, bytes(passed.body), passed.key) == ("f32", b"rows", KEY)
        assert passed.hops == [[1, 2, 3], [10, 20, 0]]
        assert stand.server.adverts()[0].free_tokens == 850

    at_stand(story)


def test_a_sampled_token_goes_to_the_client_and_around_the_ring(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(stand.step(), sender=MIDDLE)
        await stand.answer(stand.computed(token=42))
        token = stand.client.last(Token)
        assert (token.position, token.ids, token.finish) == (3, [42], "")
        assert len(token.hops) == 3
        ring = stand.ears[FIRST].last(Step)
        assert (ring.stage, ring.position, ring.tokens, ring.sample) == (0, 3, 1, True)
        assert (ring.dtype, ids_of_bytes(ring.body), ring.hops) == ("i32", [42], [])

    at_stand(story, LAST)


def test_the_last_token_ends_the_ring(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(stand.step(), sender=MIDDLE)
        await stand.answer(replace(stand.computed(token=42), finish="stop"))
        assert stand.client.last(Token).finish == "stop"
        assert stand.ears[FIRST].heard == []

    at_stand(story, LAST)


def test_a_prefill_chunk_that_is_not_sampled_ends_at_the_last_stage(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(replace(stand.step(), sample=False), sender=MIDDLE)
        await stand.answer(Computed(stand.name(), 0, 3, False, free_tokens=850))
        assert [type(message) for message in stand.client.heard] == [Opened]
        assert stand.ears[FIRST].heard == []

    at_stand(story, LAST)


def test_a_stranger_can_neither_step_nor_end_a_session(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(stand.step(), sender=STRANGER)
        await stand.send(replace(stand.step(), key=b"g" * 16), sender=FIRST)
        await stand.send(Close("s", 1, KEY), sender=STRANGER)
        await stand.send(Cancel("s", 1, b"g" * 16), sender=CLIENT)
        await stand.send(Close("s", 1, b"g" * 16), sender=FIRST)
        assert stand.worker.count(Compute) == 0
        assert stand.worker.count(Release) == 0
        assert stand.server.sessions == 1
        assert stand.client.last(Opened).session == "s"
        ears = stand.client, stand.ears[FIRST], stand.ears[STRANGER]
        assert not any(isinstance(message, Fail) for ear in ears for message in ear.heard)

    at_stand(story)


def test_a_step_of_an_unknown_session_is_refused(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.send(stand.step(), sender=FIRST)
        fail = stand.ears[FIRST].last(Fail)
        assert (fail.code, fail.session, fail.epoch) == ("unknown_session", "s", 1)

    at_stand(story)


def test_a_repeated_step_is_ignored(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        for _ in range(3):
            await stand.send(stand.step(), sender=FIRST)
        assert stand.worker.count(Compute) == 1
        assert not any(isinstance(message, Fail) for message in stand.client.heard)

    at_stand(story)


@pytest.mark.parametrize(
    ("position", "tokens", "code"), [(5, 1, "bad_frame"), (0, 0, "bad_frame"), (0, 65, "overflow")]
)
def test_a_step_that_does_not_fit_is_refused(
    at_stand: RunStand, position: int, tokens: int, code: str
) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(stand.step(position, tokens), sender=FIRST)
        assert stand.client.last(Fail).code == code
        assert stand.worker.count(Compute) == 0
        await stand.send(stand.step(), sender=FIRST)
        assert stand.worker.count(Compute) == 1

    at_stand(story)


def test_a_newer_epoch_replaces_the_session_and_an_older_one_is_refused(
    at_stand: RunStand,
) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session(epoch=2)
        await stand.open_session(epoch=3)
        assert stand.worker.last(Release).session == stand.name(epoch=2)
        assert stand.worker.last(Reserve).session == stand.name(epoch=3)
        assert stand.server.sessions == 1
        await stand.send(stand.open(epoch=2))
        assert stand.client.last(Fail).code == "stale_epoch"
        await stand.send(stand.step(epoch=2), sender=FIRST)
        assert stand.worker.count(Compute) == 0
        await stand.send(stand.step(epoch=3), sender=FIRST)
        assert stand.worker.last(Compute).session == stand.name(epoch=3)

    at_stand(story)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": "other"}, "wrong_model"),
        ({"stage": 0}, "stage_lost"),
        ({"route": [[MIDDLE, 0, 8]], "stage": 0}, "stage_lost"),
        ({"route": [[FIRST, 0, 3], [MIDDLE, 3, 4]]}, "stage_lost"),
        ({"route": [[FIRST, 0, 3], [MIDDLE, 4, 5]]}, "bad_frame"),
        ({"route": []}, "bad_frame"),
        ({"stage": 7}, "bad_frame"),
        ({"capacity": 0}, "bad_frame"),
        ({"capacity": 1 << 40}, "bad_frame"),
    ],
)
def test_an_open_that_cannot_be_served_is_refused(
    at_stand: RunStand, changes: dict[str, object], code: str
) -> None:
    async def story(stand: Stand) -> None:
        await stand.send(replace(stand.open(), **changes))  # type: ignore[arg-type]
        assert stand.client.last(Fail).code == code
        assert stand.worker.orders == []
        assert stand.server.sessions == 0

    at_stand(story)


def test_no_room_is_answered_busy_before_and_after_the_worker_is_asked(
    at_stand: RunStand,
) -> None:
    async def story(stand: Stand) -> None:
        await stand.send(replace(stand.open(), capacity=1001))
        busy = stand.client.last(Busy)
        assert busy.stage == 1
        assert busy.retry_after_seconds > 0
        assert stand.worker.orders == []
        await stand.send(stand.open())
        await stand.answer(Reserved(stand.name(), 0, "no_room", "full"))
        assert stand.client.last(Busy).reason == "full"
        assert stand.server.sessions == 0

    at_stand(story)


def test_a_refusal_of_the_worker_reaches_the_client(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.send(stand.open())
        await stand.answer(Reserved(stand.name(), 900, "bad_frame", "temperature is -1"))
        fail = stand.client.last(Fail)
        assert (fail.code, fail.reason) == ("bad_frame", "temperature is -1")
        assert stand.server.sessions == 0
        assert stand.server.adverts()[0].free_tokens == 1000

    at_stand(story)


def test_more_sessions_than_the_cap_find_no_seat(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        for number in range(SESSIONS_CAP + 1):
            stand.server.on_message(CLIENT, replace(stand.open(), session=str(number)))
        await until(lambda: stand.client.heard)
        assert stand.client.last(Busy).session == str(SESSIONS_CAP)
        assert stand.server.sessions == SESSIONS_CAP

    at_stand(story)


def test_a_failed_step_fails_its_session_alone(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(replace(stand.open(), session="t"))
        await stand.answer(Failed(stand.name(), "bad_frame", "rows do not fit"))
        assert stand.client.last(Fail).session == "s"
        assert stand.worker.last(Release).session == stand.name()
        assert stand.server.sessions == 1

    at_stand(story)


def test_a_session_that_finds_no_room_to_grow_is_asked_to_come_again(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.answer(Failed(stand.name(), "no_room", "no room for another 64 tokens"))
        busy = stand.client.last(Busy)
        assert (busy.session, busy.stage, busy.reason) == ("s", 1, "no room for another 64 tokens")
        assert busy.retry_after_seconds > 0
        assert stand.worker.last(Release).session == stand.name()
        assert stand.server.sessions == 0

    at_stand(story)


def test_what_is_served_is_counted_for_the_volunteer(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(stand.step(), sender=FIRST)
        await stand.answer(stand.computed())
        tokens = stand.computed().tokens
        assert (stand.server.counters.sessions, stand.server.counters.tokens) == (1, tokens)

    at_stand(story)


def test_close_and_cancel_free_the_session(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        for epoch, kind in ((1, Close), (2, Cancel)):
            await stand.open_session(epoch)
            await stand.send(kind("s", epoch, KEY))
            assert stand.worker.last(Release).session == stand.name(epoch=epoch)
            assert stand.server.sessions == 0

    at_stand(story)


def test_answers_for_a_session_that_is_gone_are_dropped(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(stand.step(), sender=FIRST)
        await stand.send(Close("s", 1, KEY))
        await stand.answer(stand.computed())
        await stand.answer(Failed(stand.name(), "bad_frame", "late"))
        assert stand.ears[LAST].heard == []
        assert [type(message) for message in stand.client.heard] == [Opened]

    at_stand(story)


def test_messages_that_are_not_for_stages_change_nothing(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        heard = len(stand.client.heard)
        for message in (Ping(1), Moved("s", 1), Fail("s", 1, "internal"), Opened("s", 1, KEY, 1)):
            await stand.send(message)
        await stand.send(Token("s", 1, KEY, 3, [1]))
        assert len(stand.client.heard) == heard
        assert stand.server.sessions == 1
        assert len(stand.worker.orders) == 1

    at_stand(story)


def test_a_client_that_opens_too_quickly_hears_busy(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        stand.server._rate = RateLimit(2)
        for number in range(3):
            stand.server.on_message(CLIENT, replace(stand.open(), session=str(number)))
        await until(lambda: stand.client.heard)
        assert stand.client.last(Busy).session == "2"
        assert stand.server.sessions == 2

    at_stand(story)
