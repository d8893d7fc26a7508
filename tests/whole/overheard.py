"""Answers in memory in the middle of which something happens, and what stages hear meanwhile."""

import asyncio
from collections.abc import Callable
from typing import Any

from client import Client
from swarm.testing.clock import settle
from swarm.wire.messages import Message, Step
from tests.whole.memory_swarm import MemorySwarm, StageHere

PROMPT = "Once upon a time"
ACT_AT = 5  # tokens
Act = Callable[[MemorySwarm], None]


def nothing(_swarm: MemorySwarm) -> None:
    """No fault at all."""


async def answer(swarm: MemorySwarm, act: Act, **options: Any) -> list[int]:
    """Ask, act on the swarm midway, and see that no session is left; closes the swarm."""
    async with asyncio.timeout(30), Client(swarm.invite, connect=swarm.connect) as asking:
        async with asking.stream(PROMPT, **options) as pieces:
            count = 0
            async for _ in pieces:
                count += 1
                if count == ACT_AT:
                    act(swarm)
        ids = list(pieces.generation.token_ids)
    await settle()
    assert all(stage.server.sessions == 0 for stage in swarm.stages.values())
    await swarm.close()
    return ids


def overhear(swarm: MemorySwarm, stage: StageHere, dtypes: list[str]) -> None:
    """Note the dtype of every STEP that a stage gets."""

    def hear(peer: str, message: Message) -> None:
        if isinstance(message, Step):
            dtypes.append(message.dtype)
        stage.server.on_message(peer, message)

    swarm.world.channels[stage.peer].listen(hear, stage.server.on_lost)
