"""Peers whose answers are no answers cost a node what it asked for, and nothing else."""

import asyncio
from dataclasses import replace

import pytest

from node.control.failure_detector import MISSES
from node.control.membership import Membership
from node.network.link_questions import measure_by_questions
from swarm.errors import RemoteProtocolError
from swarm.hardware import Device
from swarm.records import Capability
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.node.memberships import MEMBERS
from tests.node.stands import DIGEST, STRANGER

ME = peer_named("me")
CAPABILITY = Capability(DIGEST, [Device(0, "cpu", "cpu", 1, 1.0, 1.0)], [], "host", True, 0.0)


async def babble(*_: object, **__: object) -> bytes:
    raise RemoteProtocolError("An answer's header is not understood.")


def test_a_peer_that_babbles_is_lost_and_not_measured() -> None:
    async def story() -> None:
        world = MemoryWorld()
        channel = world.channel(ME)
        channel.ask = babble  # type: ignore[method-assign]
        membership = Membership("swarm", DIGEST, world.board(ME), channel, MEMBERS)
        await world.board(STRANGER).publish(CAPABILITY)
        await membership.refresh()
        with pytest.raises(RemoteProtocolError):
            await measure_by_questions(channel, STRANGER)
        await membership.tell_news([STRANGER])
        for _ in range(MISSES):
            assert STRANGER in membership.capabilities
            await membership.ask_whether_alive([STRANGER])
        assert STRANGER not in membership.capabilities

    asyncio.run(story())


def test_a_peer_that_missed_one_question_and_left_no_longer_counts() -> None:
    async def story() -> None:
        world = MemoryWorld()
        membership = Membership("swarm", DIGEST, world.board(ME), world.channel(ME), MEMBERS)
        board = world.board(STRANGER)
        await board.publish(CAPABILITY)
        await membership.refresh()
        await membership.ask_whether_alive([STRANGER])  # nobody is there
        assert membership.has_misses
        await board.publish(replace(CAPABILITY, leaving=True))
        await membership.refresh()
        assert not membership.has_misses

    asyncio.run(story())
