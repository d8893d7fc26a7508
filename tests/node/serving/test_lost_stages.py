"""The server with several devices, and when peers or shards are lost, silent or leaving."""

import asyncio
from dataclasses import replace

import pytest

from node.serving.session_table import IDLE_SECONDS
from node.worker.messages import Broken, Compute, Release, Reserved
from swarm.testing.clock import settle
from swarm.wire.messages import Cancel, Fail, Moved, Open, Opened, Step, Token
from swarm.wire.token_ids import ids_of_bytes, ids_to_bytes
from tests.node.conftest import RunStand
from tests.node.stands import CLIENT, FIRST, KEY, LAST, MIDDLE, STRANGER, Stand, until

NEVER = 60.0  # seconds that no test waits


def test_the_client_relays_when_the_next_stage_is_out_of_reach(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        stand.world.cut(MIDDLE, LAST)
        await stand.send(stand.step(), sender=FIRST)
        await stand.answer(stand.computed())
        handed = stand.client.last(Step)
        assert (handed.stage, handed.position, bytes(handed.body)) == (2, 0, b"rows")

    at_stand(story)


def test_the_ring_closes_over_the_client_when_the_first_stage_is_out_of_reach(
    at_stand: RunStand,
) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        stand.world.cut(FIRST, LAST)
        await stand.send(stand.step(), sender=MIDDLE)
        await stand.answer(stand.computed(token=42))
        assert stand.client.last(Token).ids == [42]
        handed = stand.client.last(Step)
        assert (handed.stage, ids_of_bytes(handed.body)) == (0, [42])

    at_stand(story, LAST)


def test_the_client_may_carry_a_step_to_any_stage(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(stand.step(), sender=CLIENT)
        assert stand.worker.count(Compute) == 1

    at_stand(story)


def test_a_lost_client_frees_its_sessions_and_no_others(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(replace(stand.open(), session="t"), sender=STRANGER)
        stand.world.kill(CLIENT)
        await settle()
        assert stand.worker.last(Release).session == stand.name()
        assert stand.server.sessions == 1

    at_stand(story)


def test_a_lost_neighbour_frees_nothing_since_the_client_may_relay(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.send(stand.step(), sender=FIRST)
        stand.world.kill(FIRST)
        await settle()
        assert stand.server.sessions == 1

    at_stand(story)


def test_a_client_that_cannot_be_reached_frees_its_session(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        stand.server.on_message(CLIENT, stand.open())
        del stand.world.channels[CLIENT]
        await stand.answer(Reserved(stand.name(), 900))
        assert stand.worker.last(Release).session == stand.name()
        assert stand.server.sessions == 0

    at_stand(story)


def test_a_session_that_nobody_uses_is_freed(
    at_stand: RunStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("node.serving.stage_server._now", lambda: now)

    async def story(stand: Stand) -> None:
        nonlocal now
        await stand.open_session()
        now = IDLE_SECONDS
        stand.server.free_idle()
        assert stand.server.sessions == 1
        await stand.send(stand.step(), sender=FIRST)
        now = 2 * IDLE_SECONDS
        stand.server.free_idle()
        assert stand.server.sessions == 1
        now += 1
        stand.server.free_idle()
        assert stand.server.sessions == 0
        assert stand.worker.last(Release).session == stand.name()

    at_stand(story)


def test_a_retired_stage_ends_its_sessions_and_takes_no_more(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        stand.server.retire(0)
        await settle()
        assert stand.client.last(Fail).code == "leaving"
        assert stand.server.adverts() == []
        assert stand.server.sessions == 0
        await stand.send(stand.open(epoch=2))
        assert stand.client.last(Fail).code == "stage_lost"

    at_stand(story)


def test_a_draining_stage_serves_those_it_has_until_they_have_moved(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        draining = asyncio.create_task(stand.server.drain(0, NEVER))
        await settle()
        assert stand.client.last(Moved) == Moved("s", 1)
        assert stand.server.adverts() == []
        await stand.send(replace(stand.open(), session="t"), sender=STRANGER)
        assert stand.server.sessions == 1
        await stand.send(stand.step(), sender=FIRST)
        assert stand.worker.count(Compute) == 1
        assert not draining.done()
        await stand.send(Cancel("s", 1, KEY), sender=CLIENT)
        await draining
        assert stand.worker.last(Release).session == stand.name()
        assert stand.server.sessions == 0

    at_stand(story)


def test_a_session_that_does_not_move_in_time_is_ended(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.server.drain(0, 0.01)
        await settle()
        assert [type(each) for each in stand.client.heard[-2:]] == [Moved, Fail]
        assert stand.client.last(Fail).code == "leaving"
        assert stand.server.sessions == 0

    at_stand(story)


def test_a_shard_that_breaks_while_it_drains_is_lost_at_once(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        draining = asyncio.create_task(stand.server.drain(0, NEVER))
        await settle()
        await stand.answer(Broken("group", "rank 1 is lost"))
        await draining
        assert stand.client.last(Fail).code == "stage_lost"

    at_stand(story)


def test_a_broken_shard_fails_its_sessions_at_once(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.answer(Broken("group", "rank 1 is lost"))
        fail = stand.client.last(Fail)
        assert (fail.session, fail.code) == ("s", "stage_lost")
        assert stand.server.adverts() == []

    at_stand(story)


def test_one_device_that_breaks_leaves_the_other_serving(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        stand.serve(device=1, free_tokens=2000)
        await stand.open_session()
        await stand.answer(Broken("group", "gone"), device=0)
        assert stand.server.sessions == 1
        await stand.answer(Broken("group", "gone"), device=1)
        assert stand.server.sessions == 0

    at_stand(story)


def test_leaving_hands_every_session_over_before_it_returns(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        await stand.server.close(0.01)
        await settle()
        assert stand.client.last(Moved).session == "s"
        assert stand.server.sessions == 0

    at_stand(story)


def test_a_new_session_goes_to_the_device_with_the_most_room(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        stand.serve(device=1, free_tokens=2000)
        await stand.send(stand.open())
        await stand.answer(Reserved(stand.name(), 1936), device=1)
        assert [advert.sessions for advert in stand.server.adverts()] == [0, 1]
        assert stand.client.last(Opened).session == "s"

    at_stand(story)


def test_a_peer_that_leads_two_stages_passes_rows_to_itself(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        route = [[MIDDLE, 0, 3], [MIDDLE, 3, 5]]
        stage = stand.server._stages[0]
        stand.server.serve(1, replace(stage, start=0, end=3))
        opened: Open = replace(stand.open(), route=route)
        await stand.send(replace(opened, stage=0))
        await stand.send(opened)
        await stand.answer(Reserved(stand.name(), 900), device=1)
        await stand.answer(Reserved(stand.name(), 900), device=0)
        await stand.send(replace(stand.step(tokens=1), stage=0, hops=[]))
        await stand.answer(stand.computed(tokens=1), device=1)
        assert bytes(stand.worker.last(Compute).body) == b"rows"
        await stand.answer(stand.computed(tokens=1, token=9), device=0)
        assert stand.client.last(Token).ids == [9]
        assert stand.worker.last(Compute).body == ids_to_bytes([9])
        assert stand.worker.count(Compute) == 3

    at_stand(story)


def test_what_the_next_stage_does_not_confirm_goes_through_the_client(
    at_stand: RunStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.serving.hop_way.PATIENCE_SECONDS", 0.02)

    async def story(stand: Stand) -> None:
        await stand.open_session()
        stand.world.link(MIDDLE, LAST).in_use = True
        stand.world.swallow(MIDDLE, LAST)
        await stand.send(stand.step(), sender=FIRST)
        await stand.answer(stand.computed())
        await until(lambda: any(isinstance(each, Step) for each in stand.client.heard))
        handed = stand.client.last(Step)
        assert (handed.stage, handed.position, bytes(handed.body)) == (2, 0, b"rows")

    at_stand(story)


def test_what_was_under_way_when_the_stream_ended_goes_through_the_client(
    at_stand: RunStand,
) -> None:
    async def story(stand: Stand) -> None:
        await stand.open_session()
        stand.world.link(MIDDLE, LAST).delay_seconds = 0.5
        await stand.send(stand.step(), sender=FIRST)
        await stand.answer(stand.computed())
        assert not any(isinstance(each, Step) for each in stand.client.heard)
        stand.world.cut(MIDDLE, LAST)
        await settle()
        assert stand.client.last(Step).stage == 2

    at_stand(story)
