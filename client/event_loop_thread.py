"""EventLoopThread: an event loop in a thread of its own, so that plain calls work anywhere."""

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import uvloop

END_SECONDS = 10.0  # for an interrupted coroutine to leave its stages
T = TypeVar("T")


class EventLoopThread:
    """Runs coroutines in a thread; use it with `with`: leaving it waits for all of them."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="swarm-client", daemon=True)
        self._started: set[asyncio.Task[Any] | None] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start a coroutine in the thread; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(self._watch(coroutine), self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; an interrupt here cancels it there and waits for it."""
        ended = threading.Event()

        async def whole() -> T:
            try:
                return await coroutine
            finally:
                ended.set()

        future = self.start(whole())
        try:
            return future.result()
        finally:
            future.cancel()
            ended.wait(END_SECONDS)

    @contextmanager
    def hold(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Hold an asynchronous context manager open in the thread."""
        value = self.run(_entered(manager))
        try:
            yield value
        finally:
            self.run(_left(manager))

    async def _watch(self, coroutine: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        self._started.add(task)
        try:
            return await coroutine
        finally:
            self._started.discard(task)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._finish())
        finally:
            self._loop.close()

    async def _finish(self) -> None:
        """First let what was started end properly (it frees KV and closes p2pd), then the rest.

        What ends neither by itself nor when it is cancelled holds nobody up.
        """
        await _ended(filter(None, self._started))
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await _ended(rest)
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._loop.shutdown_asyncgens()


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Wait until tasks have ended, but not for ever."""
    if waited := list(tasks):
        await asyncio.wait(waited, timeout=END_SECONDS)


async def _entered(manager: AbstractAsyncContextManager[T]) -> T:
    return await manager.__aenter__()


async def _left(manager: AbstractAsyncContextManager[Any]) -> None:
    await manager.__aexit__(None, None, None)
