"""A node's standby worker: it takes the place of one that is lost, and is no trouble otherwise."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from node.worker import standby_handle
from node.worker.messages import Loaded
from node.worker.spawned_worker import STANDBY, SpawnedWorker, WorkerPlace
from node.worker.standby import BEGUN, WARM
from node.worker.standby_handle import (
    CALM_SECONDS,
    ENOUGH_BYTES,
    MOST_PAUSE,
    SCARCE_BYTES,
    WARM_SECONDS,
    StandbyWorker,
    pause_after,
)
from node.worker.worker_handle import WorkerProcess
from swarm.task_set import TaskSet
from tests.node.stands import until
from tests.node.worker.test_worker_process import SECONDS, Worked, load_order, pid_of

PLACE = WorkerPlace("cpu", 1, 1.0, 3)
MOST_BYTES = 700 << 20  # of a standby; torch alone is 220 MB
WAITS = "import time; time.sleep(600)"
KEEPS = """
import asyncio
from node.worker.spawned_worker import SpawnedWorker
async def spawn(*arguments):
    spawned = await SpawnedWorker.spawn(*arguments)
    print(spawned.process.pid, flush=True)
    return spawned
from node.worker.standby_handle import StandbyWorker
asyncio.run(StandbyWorker("cpu", calm_seconds=0.01, spawn=spawn).keep(lambda: True))
"""


class Idler:
    """Spawns processes that only wait, in place of standby workers; a test speaks for them."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.theirs: list[socket.socket] = []
        self._undo = ExitStack()

    async def spawn(self, module: str, kind: str) -> SpawnedWorker:
        assert (module, kind) == (STANDBY, "cpu")
        (ours, theirs), (beats, beaten) = socket.socketpair(), socket.socketpair()
        beaten.close()
        theirs.setblocking(False)
        self._undo.callback(theirs.close)
        with ExitStack() as undo:
            undo.callback(ours.close)
            undo.callback(beats.close)
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", WAITS)
            undo.pop_all()
        self.theirs.append(theirs)
        self.pids.append(process.pid)
        return SpawnedWorker(process, ours, beats)

    def __enter__(self) -> "Idler":
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def say(self, word: bytes) -> None:
        self.theirs[-1].send(word)

    @property
    def are_alive(self) -> bool:
        return any(psutil.pid_exists(each) for each in self.pids)


@pytest.fixture
def idler() -> Iterator[Idler]:
    with Idler() as made:
        yield made


@asynccontextmanager
async def kept(
    standby: StandbyWorker, is_calm: Callable[[], bool] = lambda: True
) -> AsyncIterator[StandbyWorker]:
    async with TaskSet() as tasks:
        tasks.create("keeping a standby worker", standby.keep(is_calm))
        yield standby
    await standby.close()


@asynccontextmanager
async def warm(idler: Idler, **options: Callable[[], int]) -> AsyncIterator[StandbyWorker]:
    """A standby that waits for its place."""
    standby = StandbyWorker("cpu", calm_seconds=0.01, spawn=idler.spawn, **options)
    async with kept(standby):
        await until(lambda: idler.pids)
        idler.say(WARM)
        await until(lambda: standby.pid == idler.pids[0])
        yield standby


def test_a_lost_worker_is_replaced_by_the_standby_which_then_serves() -> None:
    async def story() -> None:
        worked, standby = Worked(), StandbyWorker("cpu", calm_seconds=0.01)
        async with kept(standby):
            worked.process = await WorkerProcess.spawn(PLACE, standby)
            worked.process.listen(worked._hear)
            await until(lambda: standby.pid, SECONDS)
            pid = standby.pid
            assert pid is not None
            _check_it_is_idle(pid)
            os.kill(pid_of(worked.process), signal.SIGKILL)
            await until(worked.process.ended.is_set)
            await worked.process.restart()
            assert pid_of(worked.process) == pid != standby.pid
            loaded: Loaded = await worked.ask(load_order("g"), Loaded)
            assert loaded.weight_bytes > 0
        await worked.process.close()
        assert not psutil.pid_exists(pid)

    asyncio.run(story())


def _check_it_is_idle(pid: int) -> None:
    """Its memory is bounded, it holds no device, and what will compute has kept its priority."""
    process = psutil.Process(pid)
    assert process.memory_info().rss < MOST_BYTES
    assert process.nice() == psutil.Process().nice()  # of its main thread
    assert not [each for each in os.listdir(f"/proc/{pid}/fd") if _is_gpu(pid, each)]


def _is_gpu(pid: int, descriptor: str) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/fd/{descriptor}").readlink().name.startswith("nvidia")
    return False


def test_it_is_told_its_place_and_is_given_away_with_its_sockets(idler: Idler) -> None:
    async def story() -> None:
        async with warm(idler) as standby:
            idler.say(BEGUN)
            spawned = await standby.take(PLACE)
            assert spawned is not None
            assert spawned.process.pid == idler.pids[0]
            assert idler.theirs[0].recv(100) == b"cpu 1 1.0 3\n"
            await spawned.abandon()
            await until(lambda: len(idler.pids) > 1)  # the next one

    asyncio.run(story())


def test_a_standby_that_has_died_is_not_used_and_another_is_started_later(idler: Idler) -> None:
    async def story() -> None:
        async with warm(idler) as standby:
            os.kill(idler.pids[0], signal.SIGKILL)
            idler.theirs[0].close()
            assert await standby.take(PLACE) is None
            await until(lambda: len(idler.pids) > 1)

    asyncio.run(story())


def test_one_that_ends_while_it_takes_its_place_is_not_used(idler: Idler) -> None:
    async def story() -> None:
        async with warm(idler) as standby:
            idler.theirs[0].shutdown(socket.SHUT_WR)
            assert await standby.take(PLACE) is None

    asyncio.run(story())


def test_one_that_is_not_ready_after_minutes_is_ended(
    monkeypatch: pytest.MonkeyPatch, idler: Idler
) -> None:
    now = [1000.0]
    monkeypatch.setattr("node.worker.standby_handle.time.monotonic", lambda: now[0])

    async def story() -> None:
        standby = StandbyWorker("cpu", spawn=idler.spawn)
        for seconds, are_alive in ((CALM_SECONDS, True), (WARM_SECONDS, True), (1, False)):
            now[0] += seconds
            await standby._look(is_calm=True)
            assert idler.are_alive == are_alive
        assert standby._failures == 1

    asyncio.run(story())


def test_one_that_dies_while_nobody_needs_it_is_forgotten(idler: Idler) -> None:
    async def story() -> None:
        async with warm(idler) as standby:
            os.kill(idler.pids[0], signal.SIGKILL)
            await until(lambda: standby.pid is None)
            await until(lambda: len(idler.pids) > 1)

    asyncio.run(story())


def test_one_that_does_not_take_its_place_at_once_is_ended_and_a_worker_spawned(
    monkeypatch: pytest.MonkeyPatch, idler: Idler
) -> None:
    monkeypatch.setattr(standby_handle, "HANDOVER_SECONDS", 0.05)

    async def story() -> None:
        async with warm(idler) as standby:
            worker = await WorkerProcess.spawn(PLACE, standby)
            worker._process.kill()
            await until(worker.ended.is_set)
            await worker.restart()
            assert not psutil.pid_exists(idler.pids[0])
            assert worker._process.returncode is None
            assert pid_of(worker) not in idler.pids
            await worker.close()

    asyncio.run(story())


def test_one_that_is_not_ready_yet_is_ended_for_a_lost_worker_and_counts_as_no_failure(
    idler: Idler,
) -> None:
    async def story() -> None:
        async with kept(StandbyWorker("cpu", calm_seconds=0.01, spawn=idler.spawn)) as standby:
            await until(lambda: standby._spawned)
            assert await standby.take(PLACE) is None
            assert not psutil.pid_exists(idler.pids[0])
            assert idler.theirs[0].recv(100) == b""  # it was told nothing
            assert standby._failures == 0

    asyncio.run(story())


def test_none_is_kept_where_memory_is_short(idler: Idler) -> None:
    async def story() -> None:
        free = [ENOUGH_BYTES]
        async with warm(idler, free_bytes=lambda: free[0]) as standby:
            free[0] = SCARCE_BYTES
            await standby._look(is_calm=True)
            assert standby.pid
            free[0] = SCARCE_BYTES - 1
            await standby._look(is_calm=True)
            assert not idler.are_alive
            free[0] = ENOUGH_BYTES - 1
            await standby._look(is_calm=True)
            assert len(idler.pids) == 1
            free[0] = ENOUGH_BYTES
            await standby._look(is_calm=True)
            assert len(idler.pids) == 2

    asyncio.run(story())


def test_none_is_started_before_the_node_has_been_calm_for_long_and_while_it_loads(
    monkeypatch: pytest.MonkeyPatch, idler: Idler
) -> None:
    now = [1000.0]
    monkeypatch.setattr("node.worker.standby_handle.time.monotonic", lambda: now[0])

    async def story() -> None:
        standby = StandbyWorker("cpu", spawn=idler.spawn)
        for seconds, is_calm in ((0, False), (59, True), (0, False), (59, True)):
            now[0] += seconds
            await standby._look(is_calm=is_calm)
            assert not idler.pids
        now[0] += 1
        await standby._look(is_calm=True)
        assert len(idler.pids) == 1
        await standby._look(is_calm=False)  # something loads while this one does
        assert not idler.are_alive
        now[0] += 60
        assert await standby.take(PLACE) is None  # a worker was lost, and is back at once
        await standby._look(is_calm=True)
        assert len(idler.pids) == 1

    asyncio.run(story())


def test_standbys_that_fail_are_tried_ever_more_seldom_but_never_given_up() -> None:
    pauses = [pause_after(failures) for failures in range(1, 100)]
    assert pauses[:3] == [2, 4, 8]
    assert max(pauses) == pauses[-1] == MOST_PAUSE


def test_a_standby_that_cannot_be_started_is_tried_again_after_a_pause() -> None:
    async def story() -> None:
        tried = 0

        async def spawn(*_: str) -> SpawnedWorker:
            nonlocal tried
            tried += 1
            raise OSError("no more processes")

        async with kept(StandbyWorker("cpu", calm_seconds=0.001, spawn=spawn)) as standby:
            await until(lambda: tried == 3)
            assert standby._failures == 3

    asyncio.run(story())


def test_it_ends_with_a_node_that_is_killed() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", KEEPS], stdout=subprocess.PIPE, env=environment
    ) as node:
        assert node.stdout
        standby = psutil.Process(int(node.stdout.readline()))
        node.kill()
    _, alive = psutil.wait_procs([standby], timeout=10)
    assert not alive
