"""Virtual time: an event loop on which hours pass in seconds, for whole swarms in one process."""

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

from swarm.trust.network_clock import CLOCK

EPOCH = 1_700_000_000.0  # wall-clock seconds at which virtual time begins
THREAD_SECONDS = 1.0  # that a call in a thread takes
SKEW_SECONDS: ContextVar[float] = ContextVar("skew", default=0.0)  # of the wall clock of a task

R = TypeVar("R")


class _Jump(selectors.DefaultSelector):
    """Where a loop would wait, its time moves on instead."""

    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("Everybody waits for something that no time brings.")
        self.loop.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop without sockets and threads, whose time jumps to what falls due next."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.thread_seconds = 0.0  # real ones, of all that was to run in threads
        self.thread_calls = 0
        jump = _Jump()
        jump.loop = self
        super().__init__(jump)

    def time(self) -> float:
        """Virtual seconds."""
        return self.now

    def wall(self) -> float:
        """What the wall clock says to the task that asks."""
        return EPOCH + self.now + SKEW_SECONDS.get()

    def run_in_executor(  # type: ignore[override]
        self, _executor: object, call: Callable[..., R], *values: Any
    ) -> "asyncio.Future[R]":
        """Do at once what a thread should, with its result due some virtual seconds later."""
        future: asyncio.Future[R] = self.create_future()
        began = time.perf_counter()
        try:
            end = partial(future.set_result, call(*values))
        except Exception as error:  # noqa: BLE001 - an island: whoever awaits the future hears of it
            end = partial(future.set_exception, error)
        self.call_later(THREAD_SECONDS, lambda: None if future.done() else end())
        self.thread_seconds += time.perf_counter() - began
        self.thread_calls += 1
        return future


def run_virtually(loop: VirtualLoop, story: Coroutine[Any, Any, R]) -> R:
    """Run a story to its end while all clocks of the process show the loop's time."""
    with _clocks_of(loop), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(story)


@contextmanager
def _clocks_of(loop: VirtualLoop) -> Iterator[None]:
    with patch.object(time, "monotonic", loop.time), patch.object(CLOCK, "now", loop.wall):
        yield
