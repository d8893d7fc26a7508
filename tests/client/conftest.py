"""Fixtures of the client's tests."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.client.scripted import ScriptedSwarm

Story = Callable[[ScriptedSwarm], Awaitable[None]]


@pytest.fixture
def in_swarm() -> Callable[[Story], None]:
    """Run a coroutine with a scripted swarm, in an event loop, within five seconds."""

    def run(story: Story) -> None:
        async def whole() -> None:
            async with asyncio.timeout(5):
                await story(ScriptedSwarm())

        asyncio.run(whole())

    return run
