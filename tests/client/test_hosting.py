"""A client in a node's process: it shares the channel with the node's stages, and both hear all."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from client.hosting import HostedClient
from swarm.errors import BadInput, BadModel, BadSampling, NoRoute, PromptTooLong, SwarmError
from swarm.records import Advert, record_of_map
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.wire.messages import Message, Step
from swarm.wire.token_ids import ids_to_bytes
from tests.client.scripted import SPEC, ScriptedStage, continuation, until

PROMPT = [72, 105]


class Host:
    """A node that leads the first layers of three stages, and hosts a client."""

    def __init__(self) -> None:
        self.world = MemoryWorld()
        places = (("own", 0, 2), ("second", 2, 4), ("third", 4, 6))
        self.stages = [ScriptedStage(self.world, *place, SPEC.digest) for place in places]
        self.own = self.stages[0]
        self.lost: list[str] = []
        self.enough = asyncio.Event()
        self.client = HostedClient(
            self.own.board, self.own.channel, SPEC, stages=self, plan=lambda: b"no plan"
        )

    def on_message(self, peer: str, message: Message) -> None:
        self.own.on_message(peer, message)

    def on_lost(self, peer: str, reason: str) -> None:
        self.lost.append(peer)

    def words(self, **other: Any) -> dict[str, Any]:
        asked = {"ids": ids_to_bytes(PROMPT), "sampling": {"max_tokens": 5}, "timeout": 5.0}
        return {"model": SPEC.digest} | asked | other

    async def ask(self, **other: Any) -> tuple[list[int], dict[str, Any]]:
        """The ids of an answer, and what came of it."""
        ids: list[int] = []
        end: dict[str, Any] = {}
        async for answer in self.client.generate(self.words(**other), self.enough):
            ids += answer.get("ids", [])
            end = answer.get("end", end)
        return ids, end


def run(story: Callable[[Host], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(10.0):
            host = Host()
            for stage in host.stages:
                await stage.advertise()
            await story(host)

    asyncio.run(whole())


def test_the_owner_is_answered_over_his_own_stage_and_those_of_others() -> None:
    async def story(host: Host) -> None:
        ids, end = await host.ask()
        assert ids == continuation(PROMPT, 5)
        assert end["finish"] == "length"
        route = record_of_map(Advert, end["route"])
        assert isinstance(route, Advert)
        assert [stage.members[0].peer for stage in route.stages] == [s.peer for s in host.stages]
        assert len(end["timings"]) == 3
        assert end["replays"] == 0
        for stage in host.stages:
            await until(lambda stage=stage: not stage.opened)  # type: ignore[misc]

    run(story)


def test_steps_between_two_others_are_carried_and_those_for_the_own_stage_are_not() -> None:
    async def story(host: Host) -> None:
        own, second, third = host.stages
        second.hop_unreachable = third.hop_unreachable = True
        ids, end = await host.ask()
        assert (ids, end["replays"]) == (continuation(PROMPT, 5), 0)
        steps = [message for message in own.heard if isinstance(message, Step)]
        assert {step.stage for step in steps} == {0}, "what is carried is for nobody here"
        assert len(steps) == 5

    run(story)


def test_a_lost_peer_is_told_to_the_stages_and_to_the_sessions() -> None:
    async def story(host: Host) -> None:
        second = host.stages[1]
        spare = ScriptedStage(host.world, "spare", 2, 4, SPEC.digest)
        await spare.advertise(step_seconds=9.0)

        def lose_after_three(stage: ScriptedStage, _peer: str, message: Message) -> bool:
            if isinstance(message, Step) and message.position >= len(PROMPT) + 2:
                host.world.kill(stage.peer)
                return True
            return False

        second.hook = lose_after_three
        ids, end = await host.ask()
        assert ids == continuation(PROMPT, 5)
        assert (end["replays"], host.lost) == (1, [second.peer])

    run(story)


def test_what_is_enough_ends_the_answer_and_hanging_up_frees_every_stage() -> None:
    async def story(host: Host) -> None:
        host.enough.set()
        ids, end = await host.ask()
        assert (ids, end["finish"]) == (continuation(PROMPT, 5)[:1], "stop")
        answers = host.client.generate(host.words(), asyncio.Event())
        assert await anext(answers)
        assert all(stage.opened for stage in host.stages)
        await answers.aclose()
        for stage in host.stages:
            await until(lambda stage=stage: not stage.opened)  # type: ignore[misc]
            assert "Cancel" in stage.heard_kinds()

    run(story)


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        ({"model": "another"}, BadModel, "other files"),
        ({"ids": b"abc"}, BadInput, "no question"),
        ({"ids": "abc"}, BadInput, "no question"),
        ({"ids": b""}, BadInput, "empty"),
        ({"ids": ids_to_bytes([-1])}, BadInput, "beyond"),
        ({"ids": ids_to_bytes([SPEC.vocab])}, BadInput, "beyond"),
        ({"ids": ids_to_bytes([1] * SPEC.context)}, PromptTooLong, "context"),
        ({"sampling": []}, BadInput, "no question"),
        ({"sampling": {"max_tokens": 0}}, BadSampling, "max_tokens"),
        ({"sampling": {"warmth": 1}}, BadSampling, "warmth"),
        ({"timeout": 0}, BadInput, "above zero"),
        ({"timeout": float("nan")}, BadInput, "above zero"),
        ({"timeout": "1h"}, BadInput, "above zero"),
    ],
)
def test_what_is_no_question_troubles_no_stage(
    words: dict[str, Any], kind: type[SwarmError], says: str
) -> None:
    async def story(host: Host) -> None:
        with pytest.raises(kind, match=says):
            await host.ask(**words)
        assert [stage.heard for stage in host.stages] == [[], [], []]

    run(story)


def test_layers_that_nobody_serves_are_an_error_in_time() -> None:
    async def story(host: Host) -> None:
        del host.world.records[Advert, peer_named("third")]
        with pytest.raises(NoRoute):
            await host.ask(timeout=0.05)

    run(story)
