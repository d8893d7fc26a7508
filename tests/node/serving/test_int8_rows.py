"""Int8 links: who narrows what for whom, in a server and in the shards of one worker."""

import torch

from node.worker.messages import Compute, Computed, Failed, Release
from node.worker.scheduler import Arrived, Schedule
from swarm.records import Member
from swarm.wire.messages import Step
from swarm.wire.sampling_params import Sampling
from swarm.wire.tensor_codec import rows_of_bytes, rows_to_bytes
from tests.node.conftest import RunStand
from tests.node.stands import FIRST, LAST, MIDDLE, Stand
from tests.node.worker.shards import (
    HIDDEN,
    computed,
    lone_shard,
    passed_on,
    reserve,
    rows_of,
    shard_group,
)

IDS = [10, 200, 33, 47, 5, 81, 9, 77]


# ---------------------------------------------------------------- the server


def told(stand: Stand) -> list[tuple[str, float]]:
    """Let every link be slow; returns what the server asks about."""
    asked: list[tuple[str, float]] = []

    def use_int8(peer: str, step_seconds: float, _dtype: str) -> bool:
        asked.append((peer, step_seconds))
        return True

    stand.server._use_int8 = use_int8
    return asked


def test_the_worker_is_told_to_narrow_the_rows_of_a_slow_link(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        asked = told(stand)
        await stand.open_session()
        await stand.send(stand.step(), sender=FIRST)
        assert asked == [(LAST, 0.01)]
        assert stand.worker.last(Compute).narrow

    at_stand(story)


def test_what_the_worker_made_goes_on_as_it_is(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        told(stand)
        await stand.open_session()
        await stand.send(stand.step(), sender=FIRST)
        answer = Computed(stand.name(), 0, 3, True, dtype="i8", body=b"narrow")
        await stand.answer(answer)
        passed = stand.ears[LAST].last(Step)
        assert (passed.dtype, bytes(passed.body)) == ("i8", b"narrow")

    at_stand(story)


def test_a_link_that_slows_down_changes_new_sessions_only(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        asked = told(stand)
        await stand.send(stand.step(), sender=FIRST)
        await stand.send(stand.step(3, 1), sender=FIRST)
        assert asked == []
        assert not stand.worker.last(Compute).narrow
        await stand.open_session(epoch=2)
        await stand.send(stand.step(epoch=2), sender=FIRST)
        assert stand.worker.last(Compute).narrow

    at_stand(story)


def test_ids_are_never_narrowed(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        asked = told(stand)
        await stand.open_session()
        await stand.send(stand.step(), sender=MIDDLE)
        assert asked == []
        assert not stand.worker.last(Compute).narrow

    at_stand(story, LAST)


def test_rows_for_another_stage_of_the_same_node_are_never_narrowed(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        asked = told(stand)
        opened = stand.open()
        opened.route[2][0] = MIDDLE
        try:
            await stand.send(opened)
        finally:
            opened.route[2][0] = LAST
        (session,) = stand.server._sessions
        assert asked == []
        assert not session.uses_int8
        assert Member(MIDDLE, 0, 8, 8) in stand.server.adverts()[0].members

    at_stand(story)


# ---------------------------------------------------------------- the shards


def narrow_rows(session: str, ids: list[int]) -> Compute:
    order = rows_of(session, 0, ids)
    return Compute(session, 0, len(ids), True, "i32", narrow=True, body=order.body)


def test_a_shard_narrows_what_it_is_told_to_and_the_next_one_reads_it() -> None:
    first, last = lone_shard(0, 4), lone_shard(4, 8)
    for session in ("full", "narrow"):
        first.apply([reserve(session, IDS)])
        last.apply([reserve(session, IDS, sampling=Sampling(max_tokens=4))])
    full = computed(first.apply([rows_of("full", 0, IDS)]))
    narrow = computed(first.apply([narrow_rows("narrow", IDS)]))
    assert (full.dtype, narrow.dtype) == ("f32", "i8")
    assert len(narrow.body) == len(IDS) * (HIDDEN + 4)
    exact = rows_of_bytes("f32", full.body, len(IDS))
    off = rows_of_bytes("i8", narrow.body, len(IDS)) - exact
    assert 0 < float((off.abs().amax(1) / exact.abs().amax(1)).max()) <= 1 / 254 + 1e-6
    for answer in (full, narrow):
        assert len(computed(last.apply([passed_on(answer)])).ids) == 1


def test_one_step_carries_sessions_of_both_forms_without_mixing_them() -> None:
    shard = lone_shard(0, 4)
    shard.apply([reserve("a", IDS), reserve("b", IDS)])
    answers = shard.apply([rows_of("a", 0, IDS), narrow_rows("b", IDS)])
    found = {a.session: a for a in answers if isinstance(a, Computed)}
    expected = rows_to_bytes(rows_of_bytes("f32", found["a"].body, len(IDS)), narrow=True)
    assert (found["b"].dtype, bytes(found["b"].body)) == (expected[0], bytes(expected[1]))
    shard.apply([Release("a"), Release("b")])


def test_a_group_that_is_fed_int8_and_answers_int8_agrees_with_a_lone_shard() -> None:
    body = rows_to_bytes(
        torch.randn(8, HIDDEN, generator=torch.Generator().manual_seed(2)), narrow=True
    )[1]
    order = Compute("s", 0, 8, True, "i8", narrow=True, body=body)
    lone, group = lone_shard(2, 5), shard_group(2, 5, (5, 3))
    try:
        found = []
        for shard in (lone, group.leader):
            shard.apply([reserve("s", IDS)])
            answer = computed(shard.apply([order]))
            assert answer.dtype == "i8"
            found.append(rows_of_bytes("i8", answer.body, 8))
        level = found[0].abs().amax(1, keepdim=True) / 127
        assert bool(((found[0] - found[1]).abs() <= level * 1.001).all())
    finally:
        group.close()


def test_a_chunk_of_int8_rows_is_cut_between_rows() -> None:
    rows = torch.randn(40, HIDDEN, generator=torch.Generator().manual_seed(3))
    dtype, body = rows_to_bytes(rows, narrow=True)
    schedule = Schedule()
    schedule.add(Arrived(Compute("s", 0, 40, True, dtype, narrow=True, body=body), 0.0))
    parts = []
    while schedule:
        (arrived,) = schedule.next_step(chunk_tokens=17)
        order = arrived.order
        assert isinstance(order, Compute)
        assert order.narrow
        parts.append(rows_of_bytes(order.dtype, order.body, order.tokens))
    assert [len(part) for part in parts] == [17, 17, 6]
    assert torch.equal(torch.cat(parts), rows_of_bytes(dtype, body, 40))


def test_int8_rows_of_a_wrong_width_or_scale_fail_their_session_alone() -> None:
    shard = lone_shard(4, 8)
    for session in ("wide", "hostile", "good"):
        shard.apply([reserve(session, IDS, sampling=Sampling(max_tokens=4))])
    _, good = rows_to_bytes(torch.ones(1, HIDDEN), narrow=True)
    _, wide = rows_to_bytes(torch.ones(1, HIDDEN + 1), narrow=True)
    hostile = b"\0\0\xc0\x7f" + bytes(good)[4:]  # the scale is a NaN
    bodies: dict[str, bytes | memoryview] = {"wide": wide, "hostile": hostile, "good": good}
    answers = shard.apply([Compute(s, 0, 1, False, "i8", body=b) for s, b in bodies.items()])
    failed = {a.session: a.code for a in answers if isinstance(a, Failed)}
    assert failed == {"wide": "bad_frame", "hostile": "bad_frame"}
    assert [a.session for a in answers if isinstance(a, Computed)] == ["good"]
