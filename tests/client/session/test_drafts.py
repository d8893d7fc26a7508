"""The client takes runs of ids that came from right guesses, and counts them."""

import asyncio

from client.generation import Generation
from client.request import sampling_of
from swarm.testing.memory_network import MemoryWorld
from swarm.wire.messages import Message, Step, Token
from tests.client.scripted import ScriptedStage, ScriptedSwarm, continuation

PROMPT = [104, 105]


def in_runs(stage: ScriptedStage, peer: str, message: Message) -> bool:
    """Answer the prompt with a run of three ids of four guessed, then with one of none."""
    if not isinstance(message, Step):
        return False
    truth = continuation(PROMPT, 4)
    runs = ((2, truth[:3], "", 4), (5, truth[3:], "length", 2))
    for position, ids, finish, drafted in runs:
        common = (message.session, message.epoch, message.key)
        token = Token(*common, position, ids, finish, drafted=drafted)
        stage.spawn(stage.channel.send(peer, token))
    return True


def test_a_run_of_ids_is_taken_and_its_guesses_are_counted() -> None:
    async def story() -> Generation:
        swarm = ScriptedSwarm(MemoryWorld())
        stage = await swarm.stage("only", 0, 6)
        stage.hook = in_runs
        async with asyncio.timeout(5), swarm.client() as client:
            return await client.generate(PROMPT, max_tokens=4, speculate=4)

    generation = asyncio.run(story())
    assert list(generation.token_ids) == continuation(PROMPT, 4)
    assert (generation.drafted, generation.accepted) == (6, 2)
    assert generation.to_json()["drafted"] == 6
    assert generation.to_json()["accepted"] == 2


def test_how_many_to_guess_travels_only_when_it_is_said() -> None:
    assert sampling_of({"speculate": 0}).to_map() == {"speculate": 0}
    assert sampling_of({}).to_map() == {}
