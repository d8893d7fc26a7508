"""A board that does not answer for a moment costs a session time, not its life."""

from typing import Any

import pytest

from client.routing.route import Route
from swarm.errors import Unreachable
from tests.client.scripted import LAYERS, ScriptedSwarm, continuation

PROMPT = [1, 2, 3]


@pytest.mark.parametrize("outage", [1, 3])
def test_a_session_asks_again_when_the_board_is_out_of_reach(in_swarm: Any, outage: int) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("only", 0, LAYERS)
        session = swarm.session(PROMPT, max_tokens=4)
        routes, left = session._route_finder, [outage]
        find = routes.find

        async def unreliable(*arguments: Any, **options: Any) -> Route:
            left[0] -= 1
            if left[0] >= 0:
                raise Unreachable("The swarm's peers do not answer.")
            return await find(*arguments, **options)

        routes.find = unreliable  # type: ignore[method-assign]
        await session.run()
        assert swarm.notes.tokens == continuation(PROMPT, 4)

    in_swarm(story)


def test_an_outage_that_outlasts_the_session_is_named(in_swarm: Any) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        session = swarm.session(PROMPT, timeout_seconds=0.2)

        async def fail(*_: Any, **__: Any) -> Route:
            raise Unreachable("The swarm's peers do not answer.")

        session._route_finder.find = fail  # type: ignore[method-assign]
        with pytest.raises(Unreachable):
            await session.run()

    in_swarm(story)
