"""What a hung test waits for: pytest-timeout shows the threads, this the coroutines in them."""

import asyncio
import faulthandler
import signal
import sys
from collections.abc import Generator
from types import FrameType
from typing import Any

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

TEARDOWN_SECONDS = 120.0  # pytest-timeout watches a test once only, not what it leaves behind


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item) -> Generator[None, object, object]:
    """Print where every task of every loop stands, before the test that takes too long is ended."""
    set_timer = yield
    fail = signal.getsignal(signal.SIGALRM)

    def show_and_fail(number: int, frame: FrameType | None) -> None:
        print("Tasks of asyncio:", *map(_place_of, _tasks()), sep="\n  ", file=sys.stderr)  # noqa: T201 - for pytest
        _end_process_later(item)  # what the failure unwinds, like asyncio.run, may hang again
        assert callable(fail)
        fail(number, frame)

    if callable(fail):
        signal.signal(signal.SIGALRM, show_and_fail)
    return set_timer


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """End a process whose test does not end; xdist says whose it was and goes on in another."""
    _end_process_later(item)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _end_process_later(item: pytest.Item) -> None:
    stderr = item.config.stash[fault_handler_stderr_fd_key]
    faulthandler.dump_traceback_later(TEARDOWN_SECONDS, file=stderr, exit=True)


def _tasks() -> list["asyncio.Task[Any]"]:
    """Of all loops; asyncio itself tells only of one at a time."""
    names = ("_all_tasks", "_scheduled_tasks")  # until Python 3.11, and since
    known = [each for name in names for each in getattr(asyncio.tasks, name, ())]
    return [task for task in known if not task.done()]


def _place_of(task: "asyncio.Task[Any]") -> str:
    """The whole chain of awaits: a task's own stack ends at its outermost coroutine."""
    places: list[str] = []
    awaited: object = task.get_coro()
    while isinstance(frame := getattr(awaited, "cr_frame", None), FrameType):
        places.append(f"{frame.f_code.co_name} in {frame.f_code.co_filename}:{frame.f_lineno}")
        awaited = getattr(awaited, "cr_await", None)
    return f"{task.get_name()}: {' > '.join(places)} > {awaited!r}"
