"""No task of a TaskSet fails unheard, and none outlives it."""

import asyncio
import logging
from contextlib import suppress

import pytest

from swarm import task_set
from swarm.task_set import TaskSet


async def stumble() -> None:
    raise KeyError("a bug")


def test_a_task_that_fails_is_logged_by_its_name_with_the_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        tasks = TaskSet()
        await asyncio.wait([tasks.create("tending device 0", stumble())])
        assert len(tasks) == 0

    with caplog.at_level(logging.ERROR):
        asyncio.run(story())
    assert "tending device 0 failed" in caplog.text
    assert "a bug" in caplog.text


def test_a_failure_that_its_creator_awaits_is_not_said_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        async with TaskSet() as tasks:
            with pytest.raises(KeyError):
                await tasks.create("searching", stumble(), is_awaited=True)

    asyncio.run(story())
    assert caplog.text == ""


def test_what_still_runs_at_the_end_is_cancelled_and_has_ended_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended: list[str] = []

    async def linger() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # it has something to put away
            ended.append("linger")

    async def story() -> None:
        async with TaskSet() as tasks:
            lingering = tasks.create("lingering", linger())
            await tasks.wait(0.0)
            assert not lingering.done()
        assert ended == ["linger"]
        assert lingering.cancelled()
        assert len(tasks) == 0

    asyncio.run(story())
    assert caplog.text == ""


def test_who_swallows_a_cancellation_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(task_set, "CANCEL_SECONDS", 0.01)

    async def swallow() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def story() -> None:
        async with TaskSet() as tasks:
            swallowing = tasks.create("swallowing", swallow())
            await tasks.wait(0.0)
        assert swallowing.cancelled()

    asyncio.run(asyncio.wait_for(story(), 10))
    assert caplog.text == ""


def test_who_does_not_end_at_all_is_named_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(task_set, "CANCEL_SECONDS", 0.01)

    async def story() -> None:
        released = asyncio.Event()

        async def deaf() -> None:
            while not released.is_set():
                with suppress(asyncio.CancelledError):
                    await released.wait()

        async with TaskSet() as tasks:
            task = tasks.create("tending device 0", deaf())
            await tasks.wait(0.0)
        assert not task.done()
        released.set()
        await task

    asyncio.run(asyncio.wait_for(story(), 10))
    assert "tending device 0 does not end" in caplog.text


def test_a_set_whose_tasks_end_by_themselves_is_waited_for() -> None:
    async def story() -> None:
        tasks = TaskSet()
        await tasks.wait(5.0)
        ending = tasks.create("a moment", asyncio.sleep(0))
        await tasks.wait(5.0)
        assert ending.done()
        assert not ending.cancelled()

    asyncio.run(story())
