"""A stage passes guesses on, goes back over wrong ones, and knows a repeat from a rewind."""

from dataclasses import replace

import pytest

from node.serving.session_table import StageSession, route_of, trouble_with
from node.worker.messages import Compute, Computed
from swarm.wire.messages import Open, Step, Token
from swarm.wire.token_ids import ids_of_bytes
from tests.node.conftest import RunStand
from tests.node.stands import CLIENT, FIRST, LAST, MIDDLE, Stand

ROUTE: list[list[object]] = [["a", 0, 3], ["b", 3, 5], ["c", 5, 8]]
OPEN = Open("s", 1, b"key", stage=1, route=ROUTE, model="m", capacity=20)
STEP = Step("s", 1, b"key", stage=1, position=4, tokens=4, sample=True, dtype="f32", rewinds=1)


def seat_at(position: int, rewinds: int) -> StageSession:
    session = StageSession(OPEN, "client", route_of(OPEN), device=0, seen_seconds=0.0)
    session.next_position, session.rewinds = position, rewinds
    return session


@pytest.mark.parametrize(
    ("position", "rewinds", "code"),
    [
        (4, 1, ""),  # the next one
        (8, 1, "seen"),  # a repeat
        (8, 0, ""),  # a rewind
        (4, 0, ""),
        (4, 2, "seen"),  # from before a rewind that we know of
        (8, 2, "seen"),
        (3, 1, "bad_frame"),  # a gap
        (3, 0, "bad_frame"),
    ],
)
def test_a_repeat_is_ignored_and_a_rewind_is_computed(
    position: int, rewinds: int, code: str
) -> None:
    assert trouble_with(STEP, seat_at(position, rewinds), "a") == code


@pytest.mark.parametrize(("guessed", "code"), [(3, ""), (4, "bad_frame"), (9, "bad_frame")])
def test_a_step_guesses_fewer_ids_than_it_has_rows(guessed: int, code: str) -> None:
    step = replace(STEP, drafts=[7] * guessed)
    assert trouble_with(step, seat_at(4, 1), "a") == code


def test_a_rewind_never_leaves_the_room_of_its_session() -> None:
    step = replace(STEP, position=17)
    assert trouble_with(step, seat_at(18, 0), "a") == "overflow"


def test_a_stage_passes_guesses_and_rewinds_on(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(stand.step(0, 6), sender=FIRST)
        await stand.answer(stand.computed(0, 6))
        back = replace(stand.step(4, 3), drafts=[8, 9], rewinds=1)
        for _ in range(2):
            await stand.send(back, sender=FIRST)
        assert stand.worker.count(Compute) == 2
        order = stand.worker.last(Compute)
        assert (order.position, order.tokens, order.drafts) == (4, 3, [8, 9])
        await stand.answer(stand.computed(4, 3))
        passed = stand.ears[LAST].last(Step)
        assert (passed.position, passed.drafts, passed.rewinds) == (4, [8, 9], 1)

    at_stand(story, MIDDLE)


def drawn(stand: Stand, position: int, tokens: int, ids: list[int], drafts: list[int]) -> Computed:
    answer = stand.computed(position, tokens, ids[0])
    return replace(answer, ids=ids, drafts=drafts)


async def seat_that_guesses(stand: Stand) -> None:
    """Session "s" at the last stage, its prompt of three computed, two ids guessed."""
    sampling = {"max_tokens": 9, "speculate": 2}
    await stand.send(replace(stand.open(), sampling=sampling))
    await stand.send(stand.step(), sender=MIDDLE)
    await stand.answer(drawn(stand, 0, 3, [42], [50, 51]))


def test_the_ring_carries_guesses_behind_the_drawn_id(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await seat_that_guesses(stand)
        token = stand.client.last(Token)
        assert (token.position, token.ids, token.drafted) == (3, [42], 0)
        ring = stand.ears[FIRST].last(Step)
        assert (ring.position, ring.tokens, ring.sample, ring.rewinds) == (3, 3, True, 0)
        assert (ids_of_bytes(ring.body), ring.drafts) == ([42, 50, 51], [50, 51])

    at_stand(story, LAST)


@pytest.mark.parametrize(
    ("ids", "position", "rewinds"),
    [([60], 4, 1), ([50, 60], 5, 1), ([50, 51, 60], 6, 0)],
    ids=["none right", "one right", "all right"],
)
def test_the_next_turn_starts_behind_the_last_id_that_counts(
    at_stand: RunStand, ids: list[int], position: int, rewinds: int
) -> None:
    async def story(stand: Stand) -> None:
        await seat_that_guesses(stand)
        guessed = replace(stand.step(3, 3), drafts=[50, 51])
        await stand.send(guessed, sender=MIDDLE)
        await stand.answer(drawn(stand, 3, 3, ids, []))
        token = stand.client.last(Token)
        assert (token.position, token.ids, token.drafted) == (4, ids, 2)
        ring = stand.ears[FIRST].last(Step)
        assert (ring.position, ring.tokens, ring.rewinds) == (3 + len(ids), 1, rewinds)
        assert (ids_of_bytes(ring.body), ring.drafts, position) == ([60], [], ring.position)
        await stand.send(guessed, sender=MIDDLE)  # again: seen
        assert stand.worker.count(Compute) == 2
        back = replace(stand.step(position, 1), rewinds=rewinds)
        await stand.send(back, sender=MIDDLE)
        assert stand.worker.count(Compute) == 3

    at_stand(story, LAST)


def test_a_session_without_a_wish_gets_the_guesses_that_pay(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.send(stand.open())
        await stand.send(stand.step(), sender=MIDDLE)
        session = stand.server._sessions.get(CLIENT, "s", 2)
        assert session is not None
        session.draft_length.acceptance, session.draft_length.away_seconds = 1.0, 1.0
        await stand.answer(drawn(stand, 0, 3, [42], [50, 51]))
        assert stand.ears[FIRST].last(Step).drafts == [50, 51]
        session.draft_length.acceptance = 0.0
        await stand.send(replace(stand.step(3, 3), drafts=[50, 51]), sender=MIDDLE)
        await stand.answer(drawn(stand, 3, 3, [60], [70]))
        assert stand.ears[FIRST].last(Step).drafts == []

    at_stand(story, LAST)
