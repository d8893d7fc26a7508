"""The announcer says again what nobody took."""

import asyncio
from pathlib import Path

import pytest

from node.control.announcer import Announcer
from node.control.membership import Membership
from node.control.plan_store import PlanStore
from swarm.errors import Unreachable
from swarm.hardware import PUNCHED, RELAYED, Device, Link
from swarm.records import PENDING, Advert, Capability, Manifest, Record, Trouble
from swarm.testing.memory_network import peer_named
from tests.node.memberships import MEMBERS
from tests.node.stands import DIGEST, MIDDLE, Stand

CAPABILITY = Capability(DIGEST, [Device(0, "cpu", "cpu", 1, 1.0, 1.0)], [], "host", True, 0.0)


def test_a_withdrawn_stage_is_withdrawn_again_until_somebody_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.control.announcer.RETRY_SECONDS", 0.0)

    async def story() -> None:
        stand = Stand()
        board = stand.world.board(MIDDLE)
        membership = Membership("swarm", DIGEST, board, stand.channel, MEMBERS)
        plan_store = PlanStore("swarm", tmp_path, stand.channel)
        announcer = Announcer(board, membership, plan_store, stand.server, CAPABILITY)
        await announcer.publish_due(None)
        assert len((await board.read(Advert))[MIDDLE].stages) == 1
        stand.server.retire(0)
        publish = board.publish

        async def refuse(record: Record, *, ttl_seconds: float | None = None) -> None:
            raise Unreachable("No peer takes our record.")

        monkeypatch.setattr(board, "publish", refuse)
        with pytest.raises(Unreachable):
            await announcer.publish_due(None)
        monkeypatch.setattr(board, "publish", publish)
        await announcer.publish_due(None)
        assert (await board.read(Advert))[MIDDLE].stages == []

    asyncio.run(story())


def test_what_a_device_fails_to_take_up_is_told_and_taken_back(tmp_path: Path) -> None:
    async def story() -> None:
        stand = Stand()
        stand.server.retire(0)
        board = stand.world.board(MIDDLE)
        membership = Membership("swarm", DIGEST, board, stand.channel, MEMBERS)
        plan_store = PlanStore("swarm", tmp_path, stand.channel)
        troubles = [Trouble(0, 3, 5, 1, "it is cut off")]
        announcer = Announcer(
            board, membership, plan_store, stand.server, CAPABILITY, troubles=lambda: troubles[:]
        )
        await announcer.publish_due(None)
        assert (await board.read(Advert))[MIDDLE].troubles == troubles
        troubles.clear()
        await announcer.publish_due(None)
        assert (await board.read(Advert))[MIDDLE].troubles == []

    asyncio.run(story())


def test_a_manifest_that_says_more_is_published_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        stand = Stand()
        board = stand.world.board(MIDDLE)
        membership = Membership("swarm", DIGEST, board, stand.channel, MEMBERS)
        plan_store = PlanStore("swarm", tmp_path, stand.channel)
        announcer = Announcer(board, membership, plan_store, stand.server, CAPABILITY)
        for inventory in (PENDING, "digest"):
            await announcer.publish_due(Manifest("m", DIGEST, "f32", 1.0, inventory=inventory))
            assert (await board.read(Manifest))[MIDDLE].inventory == inventory

    asyncio.run(story())


def test_a_relayed_link_is_named_although_no_probe_passes_its_relay(tmp_path: Path) -> None:
    async def story() -> None:
        stand = Stand()
        board = stand.world.board(MIDDLE)
        membership = Membership("swarm", DIGEST, board, stand.channel, MEMBERS)
        plan_store = PlanStore("swarm", tmp_path, stand.channel)
        announcer = Announcer(board, membership, plan_store, stand.server, CAPABILITY)
        near, far = peer_named("near"), peer_named("far")
        announcer.note_links([Link(near, 0.02, 5e6)])
        announcer.note_kinds({near: PUNCHED, far: RELAYED})
        kinds = {link.peer: link.kind for link in announcer.capability.links}
        assert kinds == {near: PUNCHED, far: RELAYED}
        announcer.note_kinds({near: PUNCHED, far: PUNCHED})  # nothing is assumed of it any more
        assert [link.peer for link in announcer.capability.links] == [near]
        announcer.note_links([Link(near, 0.02, 5e6), Link(far, 0.03, 4e6)])
        assert {link.kind for link in announcer.capability.links} == {PUNCHED}

    asyncio.run(story())
