"""A stage of the version before refuses an option that it does not know, by name."""

from collections.abc import Callable
from typing import Any

import pytest

from swarm.errors import PeerRefused
from swarm.wire.messages import Fail, Message, Open
from tests.client.conftest import Story
from tests.client.scripted import LAYERS, QUICK, ScriptedStage, ScriptedSwarm, continuation

PROMPT = [10, 20, 30]
KNOWN_BEFORE = {
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
    *("seed", "stop", "stop_ids", "speculate"),
}
Run = Callable[[Story], None]


def of_the_version_before(stage: ScriptedStage, peer: str, message: Message) -> bool:
    """Refuse what protocol 2 refused before it had these options."""
    if not isinstance(message, Open) or KNOWN_BEFORE.issuperset(message.sampling):
        return False
    (unknown,) = set(message.sampling) - KNOWN_BEFORE
    reason = f"Unknown sampling option {unknown!r}. Known are {', '.join(sorted(KNOWN_BEFORE))}."
    failure = Fail(message.session, message.epoch, "bad_frame", reason)
    stage.spawn(stage.channel.send(peer, failure))
    return True


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("presence_penalty", 0.5),
        ("frequency_penalty", 0.5),
        ("logit_bias", ((5, 1.0),)),
        ("top_logprobs", 0),
        ("grammar", ("regex", "a*")),
    ],
)
def test_an_option_that_the_last_stage_does_not_know_is_refused_by_name(
    in_swarm: Run, option: str, value: Any
) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("first", 0, 4)
        last = await swarm.stage("last", 4, LAYERS)
        last.hook = of_the_version_before
        options: dict[str, Any] = {option: value}
        with pytest.raises(PeerRefused, match=f"Unknown sampling option '{option}'"):
            await swarm.session(PROMPT, max_tokens=3, **options).run()
        assert not last.opened

    in_swarm(story)


def test_a_last_stage_that_knows_the_option_answers_in_its_place(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        await swarm.stage("first", 0, 4)
        before = await swarm.stage("before", 4, LAYERS)
        await swarm.stage("today", 4, LAYERS, step_seconds=1.0)
        before.hook = of_the_version_before
        await swarm.session(PROMPT, timeouts=QUICK, presence_penalty=0.5, max_tokens=3).run()
        assert swarm.notes.tokens == continuation(PROMPT, 3)

    in_swarm(story)


def test_stages_before_the_last_one_hear_no_options(in_swarm: Run) -> None:
    async def story(swarm: ScriptedSwarm) -> None:
        first = await swarm.stage("first", 0, 4)
        await swarm.stage("last", 4, LAYERS)
        first.hook = of_the_version_before
        await swarm.session(PROMPT, presence_penalty=0.5, max_tokens=3).run()
        assert swarm.notes.tokens == continuation(PROMPT, 3)

    in_swarm(story)
