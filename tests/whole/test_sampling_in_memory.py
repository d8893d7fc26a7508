"""Options that depend on what was generated before: real stages in memory, lost in mid-answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from client import Client, Generation
from node.worker.messages import Broken
from tests.whole.memory_swarm import MemorySwarm

PROMPT = "Once upon a time"
TOKENS = 24
SEEDED: dict[str, Any] = {"temperature": 0.9, "seed": 7}
OPTIONS: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.3},
    "presence and frequency": SEEDED | {"presence_penalty": 0.9, "frequency_penalty": 0.4},
    "bias": SEEDED | {"logit_bias": {65: 3.0, 66: 3.0}, "frequency_penalty": 1.0},
}
Story = Callable[[MemorySwarm, Client], Awaitable[None]]


def run(story: Story) -> None:
    """Two stages, the last of them twice, and a client."""

    async def whole() -> None:
        swarm = MemorySwarm()
        await swarm.add("a first", 0, 3)
        await swarm.add("a last", 3, 8)
        await swarm.add("b last", 3, 8)
        async with asyncio.timeout(60), Client(swarm.invite, connect=swarm.connect) as asking:
            await story(swarm, asking)
        await swarm.close()

    asyncio.run(whole())


async def with_a_loss(swarm: MemorySwarm, asking: Client, options: dict[str, Any]) -> Generation:
    """Lose the last stage in the middle of an answer."""
    async with asking.stream(PROMPT, max_tokens=TOKENS, **options) as pieces:
        await anext(pieces)
        await anext(pieces)
        swarm.stages["a last"].server.on_answer(0, Broken("", "a test"))
        return await pieces.finish()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_replay_goes_on_as_if_nothing_had_happened(options: dict[str, Any]) -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        whole = await asking.generate(PROMPT, max_tokens=TOKENS, **options)
        plain = {name: value for name, value in options.items() if name in SEEDED}
        assert (await asking.generate(PROMPT, max_tokens=TOKENS, **plain)).text != whole.text
        mended = await with_a_loss(swarm, asking, options)
        assert mended.replays >= 1
        assert mended.token_ids == whole.token_ids

    run(story)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_guesses_change_no_token(options: dict[str, Any]) -> None:
    async def story(_swarm: MemorySwarm, asking: Client) -> None:
        whole = await asking.generate(PROMPT, max_tokens=TOKENS, speculate=0, **options)
        guessed = await asking.generate(PROMPT, max_tokens=TOKENS, speculate=8, **options)
        assert guessed.token_ids == whole.token_ids

    run(story)
