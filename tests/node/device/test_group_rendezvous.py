"""The members of a group are told where to dial each other, so that they get there."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from node.device.endpoint import HOSTS_CAP, Reach
from node.device.group_request import GroupRequest, GroupWord
from node.device.local_device import DeviceContext, LocalDevice
from node.worker.messages import Load, Prepared, Unload
from node.worker.worker_handle import WorkerProcess
from swarm.errors import PeerRefused
from swarm.plan import Assignment, Shard, Stage
from swarm.testing.clock import settle
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.node.stands import IdleServer, ScriptedWorker

LEADER, FOLLOWER = peer_named("leader"), peer_named("follower")
STAGE = Stage(0, 8, (Shard(f"{LEADER}/0", 4, 4), Shard(f"{FOLLOWER}/0", 4, 4)))
DEFAULT = ("/ip4/127.0.0.1/tcp/4001", "/ip4/172.17.0.1/tcp/4001", "/ip4/10.0.0.1/tcp/4001")
OPEN_TO_ALL = "0.0.0.0"


class Listening(ScriptedWorker):
    """A worker that listens at once."""

    async def prepare(self, group: str, host: str) -> Prepared:
        assert host == OPEN_TO_ALL
        return Prepared(group, 4001, b"der")


def device_of(
    world: MemoryWorld,
    peer: str,
    machine: str,
    announced: Sequence[str],
    connected: Mapping[str, Sequence[str]],
) -> tuple[LocalDevice, Listening]:
    """The device of a node that listens on every address, as by default, with a plan for it."""

    async def addresses() -> Sequence[str]:
        return announced

    async def connections() -> Mapping[str, Sequence[str]]:
        return connected

    rank = [shard.peer for shard in STAGE.shards].index(peer)
    plan_store = SimpleNamespace(
        assignment_of=lambda _device: Assignment(STAGE, rank), pipeline_of=lambda _device: None
    )
    server = IdleServer()
    reach = Reach(machine, addresses, connections)
    channel = world.channel(peer)
    context = DeviceContext(
        channel, cast("Any", server), cast("Any", plan_store), "", None, "", OPEN_TO_ALL, reach
    )
    worker = Listening()
    device = LocalDevice(context, 0, 1, cast("WorkerProcess", worker))

    async def called(asker: str, payload: bytes) -> bytes:
        request = GroupRequest.from_bytes(payload)
        answer = device.let_go if request.word == GroupWord.LEAVE else device.called
        return await answer(asker, request)

    channel.answer("group", called)
    return device, worker


def dialed(
    announced: Sequence[str] = DEFAULT,
    connected: Sequence[str] = (),
    machines: tuple[str, str] = ("one", "other"),
) -> list[str]:
    """Where the follower is told to dial its leader, who announces this."""

    async def story() -> list[str]:
        world = MemoryWorld()
        leading, leader = device_of(world, LEADER, machines[0], announced, {})
        device_of_follower = device_of(
            world, FOLLOWER, machines[1], ("/ip4/10.0.0.2/tcp/4001",), {LEADER: connected}
        )
        await leading._lead(Assignment(STAGE, 0))
        assert leader.count(Load) == 1
        hosts: list[str] = device_of_follower[1].last(Load).ranks[0]["hosts"]
        return hosts

    return asyncio.run(story())


def test_ranks_of_two_machines_dial_the_addresses_at_which_their_nodes_are_reached() -> None:
    assert dialed() == ["172.17.0.1", "10.0.0.1"]


def test_the_address_that_the_connection_of_the_nodes_proves_comes_first() -> None:
    assert dialed(connected=["/ip4/10.0.0.1/tcp/4001/p2p/12D3"]) == ["10.0.0.1", "172.17.0.1"]


def test_an_address_that_only_a_connection_shows_is_tried_however_many_are_announced() -> None:
    many = [f"/ip4/172.{16 + number}.0.1/tcp/4001" for number in range(HOSTS_CAP + 4)]
    found = dialed(many, ["/ip4/10.0.0.1/tcp/50123"])
    assert len(found) == HOSTS_CAP + 1
    assert found[-1] == "10.0.0.1"


def test_what_is_announced_comes_before_an_address_that_a_connection_shows() -> None:
    found = dialed(("/ip4/192.0.2.7/tcp/4001",), ["/ip4/10.0.0.1/tcp/50123"])
    assert found == ["192.0.2.7", "10.0.0.1"]


def test_no_rank_of_another_machine_is_sent_to_its_own_loopback_or_to_every_address() -> None:
    odd = ("/ip4/0.0.0.0/tcp/1", "/ip4/127.8.8.8/tcp/1", "/dns4/localhost/tcp/1", *DEFAULT)
    assert dialed(odd) == ["172.17.0.1", "10.0.0.1"]


def test_ranks_of_one_machine_try_loopback_first() -> None:
    found = dialed(machines=("one", "one"))
    assert found == ["127.0.0.1", "172.17.0.1", "10.0.0.1"]


@dataclass
class Draining(IdleServer):
    """A server whose sessions have moved when a test says so."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def drain(self, device: int, seconds: float = 0.0) -> None:
        self.begun.set()
        await self.moved.wait()


async def group_of(world: MemoryWorld, server: IdleServer) -> tuple[LocalDevice, LocalDevice]:
    """A leader and a follower whose shards are ready; the leader's sessions are on `server`."""
    leading, _ = device_of(world, LEADER, "one", DEFAULT, {})
    following, _ = device_of(world, FOLLOWER, "other", DEFAULT, {})
    leading._context = replace(leading._context, server=cast("Any", server))
    await leading._lead(Assignment(STAGE, 0))
    for device in (leading, following):
        assert device.shard_state is not None
        device.shard_state.ready = True
    return leading, following


def test_a_rank_that_leaves_waits_until_nobody_needs_its_group() -> None:
    async def story() -> None:
        server = Draining()
        leading, following = await group_of(MemoryWorld(), server)
        leaving = asyncio.create_task(following.leave())
        await server.begun.wait()
        await settle()
        assert not leaving.done()
        assert leading.shard_state is not None
        server.moved.set()
        await leaving
        assert leading.shard_state is None
        assert cast("Listening", leading.worker).last(Unload).keep

    asyncio.run(story())


def test_only_a_member_can_end_a_group() -> None:
    async def story() -> None:
        world = MemoryWorld()
        leading, following = await group_of(world, IdleServer())
        assert following.shard_state is not None
        group = following.shard_state.group
        request = GroupRequest.of_leaving(group, Assignment(STAGE, 1))
        for peer, asked in (
            (peer_named("stranger"), request),
            (FOLLOWER, replace(request, group="another")),
            (LEADER, replace(request, rank=0)),
            (FOLLOWER, replace(request, rank=2)),
        ):
            with pytest.raises(PeerRefused):
                await leading.let_go(peer, asked)
        assert leading.shard_state is not None

    asyncio.run(story())


def test_a_rank_whose_leader_is_gone_leaves_all_the_same() -> None:
    async def story() -> None:
        world = MemoryWorld()
        _, following = await group_of(world, IdleServer())
        world.kill(LEADER)
        await following.leave()

    asyncio.run(story())
