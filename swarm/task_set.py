"""TaskSet: the tasks of one owner: none fails unheard, and none outlives it; endless loops."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

logger = logging.getLogger(__name__)

CANCELS, CANCEL_SECONDS = 3, 5.0  # times that a task is told to end, and for what it puts away
PAUSE_SECONDS = 1.0  # before a loop that failed goes on
T = TypeVar("T")


class TaskSet:
    """Holds tasks until they end; closing it, or leaving its block, ends those that are left."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def create(
        self, name: str, work: Coroutine[Any, Any, T], *, is_awaited: bool = False
    ) -> "asyncio.Task[T]":
        """Begin to work; a failure is logged, unless whoever awaits the task hears of it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard if is_awaited else partial(self._reap, name))
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def wait(self, timeout_seconds: float) -> None:
        """Wait for the tasks of now to end by themselves."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_seconds)

    async def close(self) -> None:
        """Cancel what still runs, and wait until it has ended; returns within seconds.

        Who swallows a cancellation is cancelled again: libraries do, and so does
        `asyncio.wait_for` up to Python 3.11, where what it waits for comes at the same moment.
        """
        waiting = set(self._tasks)
        for _ in range(CANCELS):
            for task in waiting:
                task.cancel()
            if waiting:
                _, waiting = await asyncio.wait(waiting, timeout=CANCEL_SECONDS)
        for task in waiting:
            logger.error("%s does not end, and is left alone", task.get_name())

    def _reap(self, name: str, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("%s failed", name, exc_info=error)


async def supervise(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run an endless loop, and begin it again after a pause whenever an exception ends it.

    Holds nothing open; only cancellation passes, and the return of a loop that is done.
    """
    while True:
        try:
            await loop()
        except Exception:  # an island: one slip of ours or of a stranger's must not end the node
            logger.exception("%s failed; it goes on in %.0f s", name, PAUSE_SECONDS)
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            return
