"""Stages drain and serve again in place, again and again, in mid-answer: nothing is ever lost."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from client import Client
from swarm.testing.clock import settle
from tests.node.stands import until
from tests.whole.memory_swarm import MemorySwarm, StageHere
from tests.whole.reference_model import expected

PROMPTS = {"Once upon a time": 60, "The owl": 45, "In the morning the fox went to the river": 30}
SPANS = {"first": (0, 3), "last": (3, 8)}
DRAIN_SECONDS = 60.0  # for sessions to move away; none may need the whole of it
ROUND_SECONDS = 20.0


@dataclass
class Askers:
    """Clients' requests that follow each other without end, and what came of them."""

    asking: Client
    finished: int = 0
    moves: int = 0
    wrong: list[Sequence[int]] = field(default_factory=list)
    enough: bool = False

    async def ask(self, prompt: str, right: list[int]) -> None:
        """Ask for the same answer again and again; a request that fails ends the test."""
        while not self.enough:
            generation = await self.asking.generate(prompt, max_tokens=len(right))
            self.finished += 1
            self.moves += generation.replays
            if list(generation.token_ids) != right:
                self.wrong.append(generation.token_ids)


async def drain_in_place(stage: StageHere) -> None:
    """A stage with sessions lets them move away, says that it has left, and is there again."""
    async with asyncio.timeout(ROUND_SECONDS):
        draining = asyncio.create_task(stage.server.drain(0, DRAIN_SECONDS))
        await asyncio.sleep(0)
        await stage.advertise()
        await draining
        assert stage.server.sessions == 0
        await stage.serve()


async def busiest(stages: list[StageHere]) -> StageHere:
    """Of replicas the one with most sessions, once there is a session at all."""
    await until(lambda: any(stage.server.sessions for stage in stages), ROUND_SECONDS)
    return max(stages, key=lambda stage: stage.server.sessions)


async def drains(rounds: int) -> Askers:
    """So many drains of busy stages under three requests at a time; whatever was lost raises."""
    answers = {prompt: expected(prompt, tokens) for prompt, tokens in PROMPTS.items()}
    swarm = MemorySwarm()
    replicas = {
        which: [await swarm.add(f"{name} {which}", *span) for name in ("a", "b")]
        for which, span in SPANS.items()
    }
    async with Client(swarm.invite, connect=swarm.connect) as asking:
        askers = Askers(asking)
        async with asyncio.TaskGroup() as tasks:
            for prompt, right in answers.items():
                tasks.create_task(askers.ask(prompt, right))
            for number in range(rounds):
                await drain_in_place(await busiest(replicas[("first", "last")[number % 2]]))
            askers.enough = True
    await settle()
    assert [stage.server.sessions for stage in swarm.stages.values()] == [0] * 4
    await swarm.close()
    return askers


def test_thirty_drains_in_place_cost_no_request_and_no_token() -> None:
    askers = asyncio.run(drains(30))
    assert askers.wrong == []
    assert askers.moves >= 30  # it was in mid-answer that stages left
    assert askers.finished >= len(PROMPTS)


@pytest.mark.slow  # some minutes
def test_a_thousand_drains_in_place_cost_no_request_and_no_token() -> None:
    askers = asyncio.run(drains(1000))
    assert askers.wrong == []
    assert askers.moves >= 1000
