"""No link is measured while a device of the node generates, whether it leads its stage or not."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.device.local_device import LocalDevice, ShardState
from node.network.link_probe import LinkProbe
from node.network.machine_lock import MachineLock
from node.probe import machine_id
from node.worker.messages import Broken, Following
from swarm.errors import PeerRefused
from swarm.plan import Assignment, Shard, Stage
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.node.nodes import node_of
from tests.node.stands import ScriptedWorker

ME, OTHER = peer_named("me"), peer_named("other")
STAGE = Stage(0, 8, (Shard(f"{OTHER}/0", 4, 4), Shard(f"{ME}/0", 4, 4)))
DEADLINE_SECONDS = 20.0


def rank_of_a_group() -> LocalDevice:
    """A device that holds the second rank of a stage, in group "g"."""
    server = SimpleNamespace(retire=lambda *_: None)
    context: Any = SimpleNamespace(
        channel=MemoryWorld().channel(ME), server=server, reach=None, store=None, host=""
    )
    device = LocalDevice(context, 0, 1, ScriptedWorker())
    device.shard_state = ShardState(Assignment(STAGE, 1), "g", 0.0, ready=True)
    return device


def neighbours_probe(world: MemoryWorld, folder: Path) -> LinkProbe:
    """What another peer measures its links with, on the same machine: its own lock counts."""
    lock = MachineLock(folder / "links")
    return LinkProbe(world.channel(OTHER), machine_id(), lambda: False, lambda *_: None, lock)


async def is_measured(probe: LinkProbe, peer: str) -> bool:
    """Whether a probe measures its link to a peer; else it is told to try again later."""
    try:
        await probe.measure(peer)
    except PeerRefused as error:
        if not error.retry_after_seconds:
            raise
        return False
    return True


def test_a_rank_is_not_measured_while_sessions_are_open_in_its_group(tmp_path: Path) -> None:
    async def story() -> None:
        world = MemoryWorld()
        node = node_of(world, "me", tmp_path, [])
        probe = neighbours_probe(world, tmp_path)
        node._devices.by_index[0] = device = rank_of_a_group()
        device.on_answer(Following("g", 2))
        assert not await is_measured(probe, ME)
        assert not await is_measured(node._link_monitor._probe, OTHER)
        device.on_answer(Following("g", 0))
        assert await is_measured(probe, ME)

    asyncio.run(_in_time(story()))


def test_a_node_is_not_measured_while_sessions_are_open_at_a_stage_that_it_leads(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        world = MemoryWorld()
        node = node_of(world, "me", tmp_path, [])
        probe = neighbours_probe(world, tmp_path)
        node._server = SimpleNamespace(sessions=1)  # type: ignore[assignment]
        assert not await is_measured(probe, ME)
        assert not await is_measured(node._link_monitor._probe, OTHER)
        node._server = SimpleNamespace(sessions=0)  # type: ignore[assignment]
        assert await is_measured(probe, ME)

    asyncio.run(_in_time(story()))


@pytest.mark.parametrize("end", [Broken("g", "a rank is gone"), Broken("", "the worker ended")])
def test_a_group_that_is_lost_has_no_sessions(end: Broken) -> None:
    device = rank_of_a_group()
    device.on_answer(Following("another group", 1))
    assert not device.follows_sessions
    device.on_answer(Following("g", 1))
    assert device.follows_sessions
    device.on_answer(end)
    assert not device.follows_sessions


async def _in_time(story: Any) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        await story
