"""A swarm in one process: real clients, servers and shards of swarm-tiny on channels in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache

from client.network import Links
from node.serving.stage_server import LedStage, StageServer
from node.worker.messages import Broken, Unload
from node.worker.scheduler import Arrived, Schedule
from node.worker.shard import LoadedShard
from node.worker.worker_handle import WorkerProcess
from swarm.errors import EngineError, PeerError
from swarm.invites import Invite
from swarm.model_spec import BUILT_IN
from swarm.records import Advert, Member
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.wire.messages import Message
from tests.node.worker.shards import lone_shard
from tests.whole.conftest import SPEC

CLIENT = peer_named("client")


@cache
def shard_of(start: int, end: int, name: str, dtype: str = "f32") -> LoadedShard:
    """A shard that the tests of this process share; every session in it is released at the end."""
    assert name
    return lone_shard(start, end, dtype=dtype)


class WorkerHere(WorkerProcess):
    """Stands for a worker process: the same schedule and the same shard, in the event loop."""

    def __init__(self, shard: LoadedShard, on_answer: Callable[[Message], None]) -> None:
        self._shard = shard
        self._on_answer = on_answer
        self._schedule = Schedule()
        self.ended = asyncio.Event()

    @property
    def is_behind(self) -> bool:
        return False

    def order(self, message: Message) -> None:
        if isinstance(message, Unload) or self.ended.is_set():
            return
        loop = asyncio.get_running_loop()
        self._schedule.add(Arrived(message, loop.time()))
        loop.call_soon(self._step)

    def _step(self) -> None:
        batch = [each.order for each in self._schedule.next_step()]
        if not batch:
            return
        try:
            answers = self._shard.apply(batch)
        except (EngineError, PeerError) as error:
            self.ended.set()
            self._on_answer(Broken("", str(error)))
            return
        for answer in answers:
            self._on_answer(answer)
        if self._schedule:
            asyncio.get_running_loop().call_soon(self._step)


class StageHere:
    """A peer that leads one stage."""

    def __init__(self, world: MemoryWorld, name: str, shard: LoadedShard, span: range) -> None:
        self.peer = peer_named(name)
        self.span = span
        self._world = world
        self.server = StageServer(world.channel(self.peer), SPEC.digest)
        self.worker = WorkerHere(shard, lambda answer: self.server.on_answer(0, answer))
        member = Member(self.peer, 0, SPEC.kv_heads, SPEC.mlp_blocks)
        seconds = 0.01 * 2.0 ** len(world.channels)  # so that the first ones are preferred
        self._led = LedStage(
            self.worker, span.start, span.stop, (member,), seconds, shard.free_tokens
        )

    async def serve(self) -> None:
        """Take sessions, also after a drain, and say so."""
        self._led.is_draining = False
        self.server.serve(0, self._led)
        await self.advertise()

    async def advertise(self) -> None:
        board = self._world.board(self.peer)
        await board.publish(Advert(SPEC.digest, self.server.adverts(), 1))


class MemorySwarm:
    """A world with stages in it."""

    def __init__(self) -> None:
        self.world = MemoryWorld()
        self.stages: dict[str, StageHere] = {}

    async def add(self, name: str, start: int, end: int, dtype: str = "f32") -> StageHere:
        """A peer joins with a stage of its own."""
        return await self.add_shard(name, start, end, shard_of(start, end, name, dtype))

    async def add_shard(self, name: str, start: int, end: int, shard: LoadedShard) -> StageHere:
        """A peer joins with a shard that is loaded already."""
        self.stages[name] = StageHere(self.world, name, shard, range(start, end))
        await self.stages[name].serve()
        return self.stages[name]

    @property
    def invite(self) -> Invite:
        return Invite((f"/ip4/127.0.0.1/tcp/1/p2p/{CLIENT}",), "memory", BUILT_IN)

    @asynccontextmanager
    async def connect(self, _invite: Invite) -> AsyncIterator[Links]:
        """What a client of this world needs of it."""
        channel = self.world.channel(CLIENT)
        yield Links(self.world.board(CLIENT), channel)
        await channel.close()

    async def close(self) -> None:
        """Dismiss what is left; the shards are used again."""
        for stage in self.stages.values():
            await stage.server.close(0.0)
