"""Loops of a node go on whatever ends them; only the node itself ends them."""

import asyncio
import logging

import pytest

from swarm.task_set import supervise


def test_a_loop_that_fails_is_logged_with_its_cause_and_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm.task_set.PAUSE_SECONDS", 0.0)
    rounds: list[int] = []

    async def stumble() -> None:
        rounds.append(1)
        if len(rounds) < 3:
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")

    with caplog.at_level(logging.ERROR):
        asyncio.run(supervise("watching", stumble))
    assert len(rounds) == 3
    assert caplog.text.count("watching failed") == 2
    assert "surrogates not allowed" in caplog.text


def test_a_loop_that_is_cancelled_ends() -> None:
    async def story() -> None:
        began = asyncio.Event()

        async def wait() -> None:
            began.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(supervise("waiting", wait))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
