"""A client against the table of legal moves: what is outside changes nothing, what is in does."""

import asyncio
from collections.abc import Callable

import pytest

from client.session.deadlines import Timeouts
from swarm.testing.clock import settle
from swarm.testing.memory_network import peer_named
from swarm.wire.messages import (
    KINDS,
    Busy,
    Cancel,
    Close,
    Fail,
    Message,
    Moved,
    Open,
    Opened,
    Ping,
    Pong,
    Step,
    Token,
)
from swarm.wire.rules import FailCode, Role, Side, State, is_legal
from tests.client.conftest import Story
from tests.client.scripted import LAYERS, ScriptedStage, ScriptedSwarm, until

Run = Callable[[Story], None]
PROMPT = [10, 20, 30]
CALM = Timeouts(step_seconds=60, open_seconds=60, pause_seconds=0.02, leave_seconds=0.2)
ROLES = {
    "first": frozenset({Role.ANY_STAGE, Role.NAMED_STAGE}),
    "last": frozenset({Role.ANY_STAGE, Role.LAST_STAGE}),
    "stranger": frozenset[Role](),
}


def message_of(kind: type[Message], opened: Open) -> Message:
    """A message for a session in which nothing is wrong but perhaps its sender."""
    named = opened.session, opened.epoch, opened.key
    messages: tuple[Message, ...] = (
        Open(*named, stage=0, route=opened.route, model=opened.model, capacity=1),
        Opened(*named, 0),
        Busy(*named, 0, 0.1),
        Step(*named, 1, 0, 1, False, "f32", body=b"rows"),
        Token(*named, len(PROMPT), [1]),
        Fail(*named[:2], FailCode.STAGE_LOST),
        Cancel(*named),
        Close(*named),
        Moved(*named[:2]),
        Ping(1),
        Pong(1),
    )
    return next(message for message in messages if type(message) is kind)


def without_first(stage: ScriptedStage, peer: str, message: Message) -> bool:
    """A first stage that keeps silent."""
    return True


@pytest.mark.parametrize("sender", ROLES)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("kind", KINDS.values())
def test_a_client_acts_on_what_the_table_allows_and_on_nothing_else(
    in_swarm: Run, kind: type[Message], state: State, sender: str
) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first, last = await swarm.stage("first", 0, 4), await swarm.stage("last", 4, LAYERS)
        first.hook = without_first
        session = swarm.session(PROMPT, timeouts=CALM, max_tokens=4)
        running = asyncio.create_task(session.run())
        await until(lambda: bool(first.heard and last.heard))
        await settle()
        if state == State.CLOSED:
            running.cancel()
            await asyncio.wait([running])
        opened = last.heard[0]
        assert isinstance(opened, Open)
        senders = {"first": first.channel, "last": last.channel}
        channel = senders.get(sender) or swarm.world.channel(peer_named("stranger"))

        def seen() -> tuple[object, ...]:
            return len(first.heard), len(last.heard), list(session.transcript.generated)

        await settle()
        before = seen()
        await channel.send(swarm.channel.peer, message_of(kind, opened))
        await settle()
        assert (seen() != before) == is_legal(kind, ROLES[sender], Side.CLIENT, state)
        running.cancel()
        await asyncio.wait([running])

    in_swarm(story)
