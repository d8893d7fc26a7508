"""Fixtures of the node's tests."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import torch

from tests.node.stands import MIDDLE, Stand

Story = Callable[[Stand], Awaitable[None]]
RunStand = Callable[..., None]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """As many threads as there are cores already belong to the tests beside this one."""
    torch.set_num_threads(1)


@pytest.fixture
def at_stand() -> RunStand:
    """Run a coroutine with a server among scripted peers, within five seconds."""

    def run(story: Story, me: str = MIDDLE) -> None:
        async def whole() -> None:
            async with asyncio.timeout(5):
                stand = Stand(me)
                await story(stand)
                await stand.server.close(0.0)

        asyncio.run(whole())

    return run
