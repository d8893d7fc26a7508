"""A device that its owner takes back: sessions move away, the worker ends, nothing begins anew."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from node.device.group_request import GroupRequest, GroupWord
from node.device.local_device import (
    YIELD_END_SECONDS,
    YIELD_SECONDS,
    LocalDevice,
    Presence,
    ShardState,
)
from node.worker.messages import Loaded
from swarm.errors import PeerRefused
from swarm.plan import Assignment, Shard, Stage
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.node.stands import IdleServer, ScriptedWorker

ME, OTHER = peer_named("me"), peer_named("other")
ALONE = Stage(0, 8, (Shard(f"{ME}/0", 8, 8),))
SHARED = Stage(0, 8, (Shard(f"{OTHER}/0", 4, 4), Shard(f"{ME}/0", 4, 4)))


@dataclass
class Drains(IdleServer):
    """A server whose sessions move when a test says so."""

    done: list[str]
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def drain(self, device: int, seconds: float = 0.0) -> None:
        self.done.append(f"drain {seconds}")
        await self.moved.wait()

    def serve(self, device: int, stage: object) -> None:
        self.done.append("serve")


class EndsWorker(ScriptedWorker):
    """A worker process that can be ended and started again."""

    def __init__(self, done: list[str]) -> None:
        super().__init__()
        self._done = done

    async def close(self, end_seconds: float = 2.0) -> None:
        self._done.append(f"end {end_seconds}")
        self.ended.set()

    async def restart(self) -> None:
        self._done.append("start")
        self.ended.clear()


class Bench:
    """A device with a ready shard of a stage."""

    def __init__(self, stage: Stage = ALONE) -> None:
        self.done: list[str] = []
        self.server, self.worker = Drains(self.done), EndsWorker(self.done)
        rank = [shard.peer for shard in stage.shards].index(ME)
        self.assignment = Assignment(stage, rank)
        plan_store = SimpleNamespace(
            assignment_of=lambda _device: self.assignment, pipeline_of=lambda _device: None
        )
        context: Any = SimpleNamespace(
            channel=MemoryWorld().channel(ME),
            server=self.server,
            plan_store=plan_store,
            store=None,
            host="",
            reach=None,
        )
        self.device = LocalDevice(context, 0, 1, self.worker)
        self.device.shard_state = ShardState(self.assignment, "g", 0.0, ready=True)

    async def is_off(self) -> None:
        """Pause it to the end."""
        self.server.moved.set()
        await self.device.pause()


def run(story: Callable[[Bench], Awaitable[None]], stage: Stage = ALONE) -> list[str]:
    async def whole() -> list[str]:
        bench = Bench(stage)
        async with asyncio.timeout(10.0):
            await story(bench)
        return bench.done

    return asyncio.run(whole())


def test_sessions_move_first_and_then_the_worker_ends_all_within_two_seconds() -> None:
    async def story(bench: Bench) -> None:
        pausing = asyncio.create_task(bench.device.pause())
        await asyncio.sleep(0)
        await bench.device.reconcile()  # meanwhile
        assert not bench.worker.ended.is_set()
        assert bench.device.shard_state is not None
        bench.server.moved.set()
        await pausing
        assert bench.device.presence is Presence.OFF
        assert bench.device.shard is None

    assert run(story) == [f"drain {YIELD_SECONDS}", f"end {YIELD_END_SECONDS}"]
    assert YIELD_SECONDS + YIELD_END_SECONDS < 1.5


def test_no_duty_starts_the_worker_again_before_the_owner_lets_it() -> None:
    async def story(bench: Bench) -> None:
        await bench.is_off()
        for _ in range(3):
            await bench.device.reconcile()
        assert "start" not in bench.done
        bench.device.resume()
        await bench.device.reconcile()
        assert bench.done[-1] == "start"

    run(story)


def test_a_worker_that_was_being_started_meanwhile_ends_too() -> None:
    async def story(bench: Bench) -> None:
        await bench.is_off()
        await bench.worker.restart()  # of a duty that was on the way
        await bench.device.reconcile()
        assert bench.worker.ended.is_set()

    run(story)


def test_who_resumes_while_sessions_move_keeps_the_worker() -> None:
    async def story(bench: Bench) -> None:
        pausing = asyncio.create_task(bench.device.pause())
        await asyncio.sleep(0)
        bench.device.resume()
        bench.server.moved.set()
        await pausing
        assert not bench.worker.ended.is_set()

    run(story)


def test_a_shard_that_gets_ready_during_the_pause_is_not_served() -> None:
    async def story(bench: Bench) -> None:
        bench.device.presence = Presence.LEAVING
        bench.device.on_answer(Loaded("g", 1, 1, 1, 0.1, 1))
        assert "serve" not in bench.done

    run(story)


@pytest.mark.parametrize("word", [GroupWord.PREPARE, GroupWord.LOAD])
def test_no_leader_gets_a_paused_device_for_its_group(word: GroupWord) -> None:
    async def story(bench: Bench) -> None:
        bench.device.presence = Presence.OFF
        request = GroupRequest.of(word, "another", bench.assignment, ())
        with pytest.raises(PeerRefused, match="owner"):
            await bench.device.called(OTHER, request)

    run(story, SHARED)


def test_a_rank_whose_leader_does_not_answer_is_free_in_time_all_the_same() -> None:
    async def story(bench: Bench) -> None:
        await bench.device.pause()  # nobody is there to tell
        assert bench.worker.ended.is_set()

    run(story, SHARED)
