"""StandbyWorker: one idle worker process that a node keeps, to put in the place of one it loses.

What takes seconds of a worker's start are imports. So a node that has served calmly for a while
starts a worker that has no device yet. Whenever it is not as it should be, a new worker is spawned
as if there were none.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

import psutil

from node.worker.spawned_worker import STANDBY, SpawnedWorker, WorkerPlace
from node.worker.standby import BEGUN, WARM

logger = logging.getLogger(__name__)

CALM_SECONDS = 60.0  # that all devices have served when a standby is started
LOOKS = 12  # in that time
WARM_SECONDS = 300.0  # it has least priority
HANDOVER_SECONDS = 1.0  # of a process that only waits
MOST_PAUSE = 60  # times CALM_SECONDS between standbys that fail
ENOUGH_BYTES, SCARCE_BYTES = 2 << 30, 1 << 30  # of free memory: to start one, to keep it


def pause_after(failures: int) -> float:
    """How many times CALM_SECONDS to wait after so many standbys in a row that failed."""
    return min(2.0 ** min(failures, 16), MOST_PAUSE)


def _free_bytes() -> int:
    return int(psutil.virtual_memory().available)


class StandbyWorker:
    """At most one process; it ends with its node, or when its memory is needed."""

    def __init__(
        self,
        kind: str,
        *,
        calm_seconds: float = CALM_SECONDS,
        free_bytes: Callable[[], int] = _free_bytes,
        spawn: Callable[..., Awaitable[SpawnedWorker]] = SpawnedWorker.spawn,
    ) -> None:
        self._kind = kind  # of the devices that it may get
        self._calm_seconds = calm_seconds
        self._free_bytes = free_bytes
        self._spawn = spawn
        self._spawned: SpawnedWorker | None = None
        self._is_warm = False
        self._failures = 0  # in a row
        self._calm_since = self._started_at = 0.0
        self._not_before = 0.0

    @property
    def pid(self) -> int | None:
        """The process that could take a worker's place now; None if there is none."""
        self._hear()
        return self._spawned.process.pid if self._spawned and self._is_warm else None

    async def keep(self, is_calm: Callable[[], bool]) -> None:
        """Keep a standby worker while the node is calm and memory is free, without end."""
        self._calm_since = time.monotonic()
        while True:
            await self._look(is_calm=is_calm())
            await asyncio.sleep(self._calm_seconds / LOOKS)

    async def take(self, place: WorkerPlace) -> SpawnedWorker | None:
        """Give the standby worker a place, and its process away; None if none is to be had."""
        self._calm_since = time.monotonic()  # a worker was lost: the next one can wait
        self._hear()
        spawned, self._spawned = self._spawned, None
        if spawned is None:
            return None
        if self._is_warm and await _takes(spawned, place):
            self._failures = 0
            return spawned
        await spawned.abandon()
        if self._is_warm:
            self._fail("does not take the place of a lost worker")
        return None

    async def close(self) -> None:
        """End the process."""
        await self._drop()

    async def _look(self, *, is_calm: bool) -> None:
        now, free = time.monotonic(), self._free_bytes()
        if not is_calm:
            self._calm_since = now
        self._hear()
        if self._spawned is None:
            is_due = now >= max(self._not_before, self._calm_since + self._calm_seconds)
            if is_calm and is_due and free >= ENOUGH_BYTES:
                await self._start()
        elif free < SCARCE_BYTES or not (is_calm or self._is_warm):
            await self._drop()
        elif self._has_failed(now):
            await self._drop()
            self._fail("ended, or does not get ready")

    def _has_failed(self, now: float) -> bool:
        assert self._spawned is not None
        is_late = not self._is_warm and now - self._started_at > WARM_SECONDS
        return is_late or self._spawned.process.returncode is not None

    async def _start(self) -> None:
        self._is_warm, self._started_at = False, time.monotonic()
        try:
            self._spawned = await self._spawn(STANDBY, self._kind)
        except OSError as error:
            self._fail(f"does not start: {error}")
            return
        self._spawned.orders.setblocking(False)

    def _hear(self) -> None:
        """Note whether it has said that it is ready; what has ended is found by its process."""
        if self._spawned is not None and not self._is_warm:
            with contextlib.suppress(OSError):  # nothing was said
                self._is_warm = self._spawned.orders.recv(len(WARM)) == WARM

    async def _drop(self) -> None:
        spawned, self._spawned = self._spawned, None
        if spawned is not None:
            await spawned.abandon()

    def _fail(self, how: str) -> None:
        self._failures += 1
        self._not_before = time.monotonic() + pause_after(self._failures) * self._calm_seconds
        logger.info("the standby worker %s", how)


async def _takes(spawned: SpawnedWorker, place: WorkerPlace) -> bool:
    """Whether a process begins to be the worker of a place, and says so at once."""
    loop, line = asyncio.get_running_loop(), " ".join(place.arguments) + "\n"
    try:
        async with asyncio.timeout(HANDOVER_SECONDS):
            await loop.sock_sendall(spawned.orders, line.encode())
            return await loop.sock_recv(spawned.orders, len(BEGUN)) == BEGUN
    except (OSError, TimeoutError):
        return False
