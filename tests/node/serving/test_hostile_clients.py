"""The server among clients and stages that mean it harm, or are merely broken."""

from dataclasses import replace
from typing import Any

import pytest

from node.worker.messages import Compute, Release, Reserve, Reserved
from swarm.testing.clock import settle
from swarm.wire.messages import Close, Fail, Opened, Step, Token
from swarm.wire.token_ids import ids_of_bytes
from tests.node.conftest import RunStand
from tests.node.stands import CLIENT, CONTEXT, FIRST, KEY, LAST, MIDDLE, STRANGER, Stand


@pytest.mark.parametrize(
    "change",
    [
        {"session": "x" * 63},
        {"session": "x" * 50, "epoch": 2**60},
        {"body": bytes(4 * 65)},
        {"body": b"odd"},
        {"sampling": {"temperature": "x" * 60_000}},
        {"sampling": {"seed": 2**64 - 1}},
        {"sampling": {"stop": [["deep"]]}},
        {"sampling": {"unknown": 1}},
        {"capacity": 0},
        {"key": b"k" * 15},
        {"key": b"k" * 60_000},
        {"key": b""},
        {"epoch": 2**31 + 1},
    ],
)
def test_an_open_that_would_harm_the_worker_is_refused_and_leaves_nothing(
    at_stand: RunStand, change: dict[str, Any]
) -> None:
    async def story(stand: Stand) -> None:
        await stand.send(replace(stand.open(), **change))
        fail = stand.client.last(Fail)
        assert fail.code == "bad_frame"
        assert len(fail.reason) < 400
        assert stand.server.sessions == 0
        assert stand.worker.orders == []
        await stand.open_session()

    at_stand(story)


@pytest.mark.parametrize("stage", [FIRST, MIDDLE, LAST])
def test_a_session_beyond_the_context_is_refused_by_every_stage(
    at_stand: RunStand, stage: str
) -> None:
    async def story(stand: Stand) -> None:
        stand.serve(free_tokens=2 * CONTEXT)
        await stand.send(replace(stand.open(), capacity=CONTEXT + 1))
        assert stand.client.last(Fail).code == "overflow"
        assert stand.worker.orders == []
        await stand.send(replace(stand.open(), capacity=CONTEXT))
        assert stand.worker.count(Reserve) == 1

    at_stand(story, stage)


MANY = [[FIRST, 0, 3], [MIDDLE, 3, 5], *([LAST, n, n + 1] for n in range(5, 515))]


@pytest.mark.parametrize(
    ("stage", "opened", "step"),
    [
        (MIDDLE, {"route": MANY}, {"hops": [[0, 0, 0]] * 512}),
        (MIDDLE, {"key": b"k" * 59_000}, {"key": b"k" * 59_000, "hops": [[2**61] * 3] * 2}),
        (LAST, {}, {"rewinds": 2**62 - 1, "drafts": [1, 2], "hops": []}),
        (LAST, {}, {"rewinds": 2**31 + 1, "drafts": [1, 2], "hops": []}),
        (LAST, {}, {"tokens": 17, "drafts": [1] * 16, "body": bytes(68), "hops": []}),
        (MIDDLE, {}, {"hops": [[1, 2, 3]] * 2}),
    ],
)
def test_what_would_follow_from_a_step_travels_or_the_step_is_refused_alone(
    at_stand: RunStand, stage: str, opened: dict[str, Any], step: dict[str, Any]
) -> None:
    async def story(stand: Stand) -> None:
        await run_beside(stand)  # all ways are open: what follows is sent at once
        await stand.send(replace(stand.open(), capacity=1000, **opened))
        await stand.answer(Reserved(stand.name(), 900))
        await stand.send(replace(stand.step(), **step))
        await stand.answer(stand.computed(token=9 if stage == LAST else None))
        assert stand.client.last(Fail).session == "s"
        assert stand.worker.count(Compute) == 1
        await run_beside(stand, position=3)

    at_stand(story, stage)


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize(
    ("stage", "answer"),
    [
        (LAST, {"ids": [2**61]}),
        (LAST, {"ids": [-1]}),
        (LAST, {"ids": [3], "finish": 7}),
        (LAST, {"ids": [3], "drafts": [2**40]}),
        (MIDDLE, {"dtype": "x" * 17}),
        (MIDDLE, {"queue_us": -1}),
        (MIDDLE, {"body": "no bytes"}),
    ],
)
def test_an_answer_of_the_worker_that_leads_to_nothing_sendable_ends_its_session_alone(
    at_stand: RunStand, stage: str, answer: dict[str, Any], is_open: bool
) -> None:
    async def story(stand: Stand) -> None:
        if is_open:
            await run_beside(stand)
        await stand.open_session()
        await stand.send(stand.step())
        await stand.answer(replace(stand.computed(), **answer))
        assert stand.client.last(Fail).code == "internal"
        assert stand.worker.last(Release).session == stand.name()
        await run_beside(stand, position=3 if is_open else 0)

    at_stand(story, stage)


async def run_beside(stand: Stand, position: int = 0) -> None:
    """Let another session, "beside", go through a step, its first one or its second one."""
    if not position:
        await stand.send(stand.open(session="beside"))
        await stand.answer(Reserved(stand.name("beside"), 900))
    await stand.send(replace(stand.step(position), session="beside"))
    token = 9 if stand.me == LAST else None
    await stand.answer(replace(stand.computed(position, token=token), session=stand.name("beside")))
    heard = stand.client if token else stand.ears[LAST]
    sent = heard.last(Token if token else Step)
    assert isinstance(sent, Token | Step)
    assert (sent.session, sent.position) == ("beside", position + 3 if token else position)


def test_a_seat_does_not_keep_the_ids_of_its_open(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        assert ids_of_bytes(stand.worker.last(Reserve).body) == [5, 6, 7]
        assert [bytes(session.message.body) for session in stand.server._sessions] == [b""]

    at_stand(story)


def test_a_peer_that_knows_the_key_cannot_take_a_session_over(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(stand.open(epoch=2), sender=FIRST)  # has a session of its own
        assert stand.worker.count(Release) == 0
        await stand.send(stand.step(), sender=FIRST)
        assert stand.worker.last(Compute).session == stand.name()

    at_stand(story)


@pytest.mark.parametrize(("key", "epoch"), [(b"g" * 16, 1), (b"g" * 16, 2**31), (KEY, 1), (KEY, 2)])
def test_who_opens_a_session_by_the_name_of_another_before_it_has_one_beside_it(
    at_stand: RunStand, key: bytes, epoch: int
) -> None:
    """A stage of an earlier route knows the name, and can be sooner than the client."""

    async def story(stand: Stand) -> None:
        await stand.send(replace(stand.open(epoch), key=key), sender=STRANGER)
        await stand.answer(Reserved(stand.name(epoch=epoch, client=STRANGER), 900))
        await stand.open_session()
        assert stand.client.last(Opened).session == "s"
        await stand.send(stand.step())
        await stand.answer(stand.computed())
        assert stand.ears[LAST].last(Step).session == "s"
        await stand.send(Close("s", epoch, key), sender=STRANGER)
        assert stand.worker.last(Release).session == stand.name(epoch=epoch, client=STRANGER)
        assert [session.client for session in stand.server._sessions] == [CLIENT]

    at_stand(story)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_of_a_namesake_makes_no_stage_before_this_one_fail_the_honest_session(
    at_stand: RunStand, stage: int
) -> None:
    """FIRST would hand a FAIL on to every client that has a session by that name there."""

    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(replace(stand.step(), stage=stage, key=b"g" * 16), sender=FIRST)
        assert stand.ears[FIRST].heard == []
        await stand.send(stand.step(), sender=FIRST)
        assert stand.worker.count(Compute) == 1

    at_stand(story)


def test_what_a_worker_says_late_of_one_client_reaches_no_other(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.send(stand.open(), sender=STRANGER)
        await stand.answer(Reserved(stand.name(client=STRANGER), 900))
        await stand.send(stand.step(), sender=STRANGER)
        theirs = stand.worker.last(Compute).session
        await stand.send(Close("s", 1, KEY), sender=STRANGER)
        await stand.open_session()
        await stand.answer(replace(stand.computed(token=9), session=theirs))
        assert [type(message) for message in stand.client.heard] == [Opened]

    at_stand(story, LAST)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 513, "body": bytes(4 * 513)},
        {"body": bytes(1 << 20)},
        {"hops": [[1, 2, 3]] * 4},
        {"hops": [[1] * 4]},
        {"tokens": 40, "drafts": [1] * 16, "body": bytes(160)},
    ],
)
def test_a_step_beyond_all_measure_is_not_computed(
    at_stand: RunStand, change: dict[str, Any]
) -> None:
    async def story(stand: Stand) -> None:
        await stand.send(replace(stand.open(), capacity=1000))
        await stand.answer(Reserved(stand.name(), 0))
        await stand.send(replace(stand.step(), **change))
        assert stand.client.last(Fail).code == "bad_frame"
        assert stand.worker.count(Compute) == 0

    at_stand(story)


def test_room_that_was_released_is_offered_again(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.send(replace(stand.open(), capacity=1000))
        await stand.answer(Reserved(stand.name(), 0))
        assert stand.server.adverts()[0].free_tokens == 0
        await stand.send(Close("s", 1, KEY))
        assert stand.server.adverts()[0].free_tokens == 1000
        await stand.send(replace(stand.open(session="t"), capacity=1000))
        assert [type(order) for order in stand.worker.orders] == [Reserve, Release, Reserve]

    at_stand(story)


def test_the_client_hears_that_the_next_stage_does_not_know_its_session(
    at_stand: RunStand,
) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        fail = Fail("s", 1, "unknown_session", "who?")
        for sender, told in [(STRANGER, fail), (LAST, replace(fail, epoch=2))]:
            await stand.send(told, sender=sender)
        assert stand.client.heard == [Opened("s", 1, KEY, 1)]
        await stand.send(fail, sender=LAST)
        assert stand.client.last(Fail) == replace(fail, peer=LAST)

    at_stand(story)


def test_a_flood_of_bad_frames_does_not_pile_up(
    at_stand: RunStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.serving.outbox.REFUSALS_CAP", 10)

    async def story(stand: Stand) -> None:
        for _ in range(100):
            stand.server.on_message(STRANGER, stand.step())
        assert len(stand.server._outbox._tasks) == 10
        await settle()
        assert len(stand.ears[STRANGER].heard) == 10

    at_stand(story)
