"""The client feeds only what not every stage holds already."""

import asyncio

import pytest

from swarm.wire.messages import Message, Open, Opened, Step
from swarm.wire.token_ids import ids_of_bytes
from tests.client.scripted import Hook, ScriptedStage, ScriptedSwarm, continuation

PROMPT = list(range(97, 117))


def holding(held: int) -> Hook:
    """A hook that opens with `held` rows and knows their ids."""

    def hook(stage: ScriptedStage, peer: str, message: Message) -> bool:
        if not isinstance(message, Open):
            return False
        stage.clients[message.session] = peer
        stage.opened[message.session] = message
        reply = Opened(message.session, message.epoch, message.key, message.stage, held)
        stage.spawn(stage.channel.send(peer, reply))
        return True

    return hook


@pytest.mark.parametrize(("first", "last", "start"), [(20, 12, 12), (5, 99, 5), (99, 99, 19)])
def test_the_prompt_is_fed_from_the_least_that_all_stages_hold(
    first: int, last: int, start: int
) -> None:
    async def story() -> tuple[list[int], Step]:
        swarm = ScriptedSwarm()
        stages = [await swarm.stage("first", 0, 3), await swarm.stage("last", 3, 6)]
        for stage, held in zip(stages, (first, last), strict=True):
            stage.hook = holding(held)
            stage.ids = Known(PROMPT[:start])
        session = swarm.session(PROMPT, max_tokens=3)
        async with asyncio.timeout(5):
            await session.run()
        return session.transcript.generated, next(
            message for message in stages[0].heard if isinstance(message, Step)
        )

    generated, step = asyncio.run(story())
    assert generated == continuation(PROMPT, 3)
    assert (step.position, ids_of_bytes(step.body)) == (start, PROMPT[start:])


class Known(dict[str, list[int]]):
    """Ids by session; a new session begins with those that are held."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self._ids = ids

    def __missing__(self, session: str) -> list[int]:
        self[session] = list(self._ids)
        return self[session]
