"""Coroutines in a thread of their own: results, errors, interrupts, orderly ends."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvloop

from client import event_loop_thread
from client.event_loop_thread import EventLoopThread


def test_results_and_errors_come_back() -> None:
    async def work(value: int) -> int:
        await asyncio.sleep(0)
        if value < 0:
            raise ValueError(value)
        return value + 1

    with EventLoopThread() as loop_thread:
        assert loop_thread.run(work(1)) == 2
        with pytest.raises(ValueError, match="-1"):
            loop_thread.run(work(-1))


def test_plain_calls_work_inside_a_running_loop() -> None:
    async def inner() -> str:
        return "inner"

    async def outer() -> str:
        with EventLoopThread() as loop_thread:
            return loop_thread.run(inner())

    assert asyncio.run(outer()) == "inner"


def test_leaving_waits_for_what_was_cancelled_to_clean_up() -> None:
    said: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)
            said.append("goodbye")

    with EventLoopThread() as loop_thread:
        future = loop_thread.start(work())
        loop_thread.run(asyncio.sleep(0.01))
        future.cancel()
    assert said == ["goodbye"]


def test_what_never_ends_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_loop_thread, "END_SECONDS", 0.01)
    released = threading.Event()

    async def deaf() -> None:
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    try:
        with EventLoopThread() as loop_thread:
            future = loop_thread.start(deaf())
            loop_thread.run(asyncio.sleep(0.01))
            future.cancel()
    finally:
        released.set()
    assert not loop_thread._thread.is_alive()


def test_managers_are_held_open_and_closed() -> None:
    said: list[str] = []

    @asynccontextmanager
    async def door() -> AsyncIterator[int]:
        said.append("open")
        yield 5
        said.append("closed")

    with EventLoopThread() as loop_thread:
        with loop_thread.hold(door()) as value:
            assert (value, said) == (5, ["open"])
        assert said == ["open", "closed"]


def test_a_loop_of_our_own_is_uvloops() -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with EventLoopThread() as loop_thread:
        assert isinstance(loop_thread.run(loop()), uvloop.Loop)
