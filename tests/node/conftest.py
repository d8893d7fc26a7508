"""Fixtures of the node's tests."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.node.stands import MIDDLE, Stand

Story = Callable[[Stand], Awaitable[None]]
RunStand = Callable[..., None]


@pytest.fixture
def at_stand() -> RunStand:
    """Run a coroutine with a server among scripted peers, within five seconds."""

    def run(story: Story, me: str = MIDDLE) -> None:
        async def whole() -> None:
            async with asyncio.timeout(5):
                stand = Stand(me)
                await story(stand)
                await stand.server.close()

        asyncio.run(whole())

    return run
