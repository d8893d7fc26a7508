"""Virtual time: an event loop on which hours pass in seconds, for whole swarms in one process."""

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

from swarm.trust.network_clock import CLOCK

BEGIN_SECONDS = 1000.0  # that a loop's clock shows first
EPOCH = 1_700_000_000.0  # wall-clock seconds at which virtual time begins
THREAD_SECONDS = 1.0  # that a call in a thread takes
SWEEP_LEAST = 1000  # cancelled calls among those to come, before they are swept out
SKEW_SECONDS: ContextVar[float] = ContextVar("skew", default=0.0)  # of the wall clock of a task

R = TypeVar("R")


class _Call(asyncio.TimerHandle):
    """What is to be called; leaner than asyncio's own, for millions of them."""

    __slots__ = ("call", "is_cancelled", "is_later", "loop", "values")

    def __init__(
        self, loop: "VirtualLoop", call: Callable[..., Any], values: Any, *, is_later: bool
    ) -> None:
        self.loop = loop
        self.call = call
        self.values = values
        self.is_later = is_later
        self.is_cancelled = False

    def __repr__(self) -> str:
        return f"<a call of {self.call!r}>"

    def cancelled(self) -> bool:
        """Whether it is not to be called any more."""
        return self.is_cancelled

    def cancel(self) -> None:
        """Do not call; lets go of what would have been called."""
        if not self.is_cancelled:
            self.is_cancelled = True
            self.values = ()
            self.loop.cancelled += self.is_later


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop without sockets and threads, whose time jumps to what falls due next."""

    def __init__(self) -> None:
        self.now = BEGIN_SECONDS
        self.thread_seconds = 0.0  # real ones, of all that was to run in threads
        self.thread_calls = 0
        self.cancelled = 0  # calls that still wait for their time
        self._ready_calls: deque[tuple[_Call, Context]] = deque()
        self._later: list[tuple[float, int, _Call, Context]] = []  # a heap
        self._order = itertools.count()
        self._is_stopped = False
        super().__init__()

    def time(self) -> float:
        """Virtual seconds."""
        return self.now

    def wall(self) -> float:
        """What the wall clock says to the task that asks."""
        return EPOCH + self.now + SKEW_SECONDS.get()

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Call before time moves on."""
        call = _Call(self, callback, args, is_later=False)
        self._ready_calls.append((call, context or copy_context()))
        return call

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call when time has come so far, in order of time."""
        call = _Call(self, callback, args, is_later=True)
        heapq.heappush(self._later, (when, next(self._order), call, context or copy_context()))
        return call

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call after so many virtual seconds."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def run_forever(self) -> None:
        """Make all calls in order until stopped; time moves on when none is left for now."""
        asyncio._set_running_loop(self)
        try:
            self._is_stopped = False
            while not self._is_stopped:
                self._make_calls()
                self._move_on()
        finally:
            asyncio._set_running_loop(None)

    def stop(self) -> None:
        """Make the calls that are due now, and no more."""
        self._is_stopped = True

    def _make_calls(self) -> None:
        ready = self._ready_calls
        while ready and not self._is_stopped:
            call, context = ready.popleft()
            if call.is_cancelled:
                continue
            try:
                context.run(call.call, *call.values)
            except Exception as error:  # noqa: BLE001 - an island, as in every event loop
                self.call_exception_handler({"message": f"{call!r} failed", "exception": error})

    def _move_on(self) -> None:
        """To the moment of the next call, with all that are due then."""
        if self._is_stopped:
            return
        later, ready = self._later, self._ready_calls
        if self.cancelled > max(SWEEP_LEAST, len(later) // 2):
            later[:] = [each for each in later if not each[2].is_cancelled]
            heapq.heapify(later)
            self.cancelled = 0
        if not later:
            raise RuntimeError("Everybody waits for something that no time brings.")
        self.now = max(self.now, later[0][0])
        while later and later[0][0] <= self.now:
            _, _, call, context = heapq.heappop(later)
            call.is_later = False
            if call.is_cancelled:
                self.cancelled -= 1
            else:
                ready.append((call, context))

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
