"""Options that depend on what was generated before: real stages in memory, lost in mid-answer."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from client import Client, Generation, PeerRefused
from client.request import Question
from node.worker.messages import Broken
from tests.whole.memory_swarm import MemorySwarm
from tests.whole.reference_model import TINY, ids_of

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


async def with_a_loss(
    swarm: MemorySwarm, asking: Client, options: dict[str, Any], most: int = TOKENS
) -> Generation:
    """Lose the last stage in the middle of an answer."""
    async with asking.stream(PROMPT, max_tokens=most, **options) as pieces:
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


TELLING: dict[str, Any] = SEEDED | {"frequency_penalty": 0.8, "logprobs": True, "top_logprobs": 4}


def alone(prompt: list[int], ids: list[int]) -> torch.Tensor:
    """What the whole model thinks of each next id [ids, vocab], with no option at all."""
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(TINY, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([[*prompt, *ids]])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def check_logprobs(generation: Generation) -> None:
    """Those of every token are the whole model's own."""
    told = generation.logprobs
    assert [each.id for each in told] == list(generation.token_ids)
    whole = alone(ids_of(PROMPT), list(generation.token_ids))
    for row, each in zip(whole, told, strict=True):
        assert each.logprob == pytest.approx(float(row[each.id]), abs=1e-3)
        assert [token for token, _ in each.top] == row.topk(4).indices.tolist()
        assert [value for _, value in each.top] == pytest.approx(
            row.topk(4).values.tolist(), abs=1e-3
        )


@pytest.mark.parametrize("speculate", [0, 8])
def test_log_probabilities_are_the_models_own_with_and_without_guesses(speculate: int) -> None:
    async def story(_swarm: MemorySwarm, asking: Client) -> None:
        generation = await asking.generate(
            PROMPT, max_tokens=TOKENS, **(TELLING | {"speculate": speculate})
        )
        check_logprobs(generation)
        assert generation.drafted if speculate else not generation.drafted

    run(story)


def test_log_probabilities_survive_a_lost_stage_each_told_once() -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        mended = await with_a_loss(swarm, asking, TELLING)
        assert mended.replays >= 1
        check_logprobs(mended)

    run(story)


def test_a_stream_gives_them_with_its_pieces() -> None:
    async def story(_swarm: MemorySwarm, asking: Client) -> None:
        async with asking.stream(PROMPT, max_tokens=TOKENS, **TELLING) as stream:
            pieces = [piece async for piece in stream.pieces()]
        assert "".join(piece.text for piece in pieces) == stream.generation.text
        told = tuple(each for piece in pieces for each in piece.logprobs)
        assert told == stream.generation.logprobs

    run(story)


PEOPLE = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
FORMATS: dict[str, dict[str, Any]] = {
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"schema": PEOPLE}}},
    "regex": {"structured_outputs": {"regex": "[a-f]{3,9}(-[0-9]{2}){4}"}},
    "choice": {"structured_outputs": {"choice": ["a long answer", "a longer answer, too"]}},
    "lark": {"structured_outputs": {"grammar": 'start: "x" ("y" | "z")* "end"'}},
}


def check_format(name: str, text: str) -> None:
    """The text is whole, and as it was asked for."""
    if name == "schema":
        assert sorted(json.loads(text)) == ["age", "name"]
        return
    patterns = {"regex": "[a-f]{3,9}(-[0-9]{2}){4}", "lark": "x[yz]*end"}
    patterns["choice"] = "a long answer|a longer answer, too"
    assert re.fullmatch(patterns[name], text)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_kept_with_guesses_and_over_lost_stages(name: str) -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        options = SEEDED | FORMATS[name] | {"repetition_penalty": 1.1}
        whole = await asking.generate(PROMPT, max_tokens=200, speculate=0, **options)
        check_format(name, whole.text)
        assert whole.finish_reason == "stop"
        guessed = await asking.generate(PROMPT, max_tokens=200, speculate=8, **options)
        assert guessed.token_ids == whole.token_ids
        mended = await with_a_loss(swarm, asking, options, most=200)
        assert mended.token_ids == whole.token_ids
        assert mended.replays >= 1

    run(story)


def test_a_grammar_that_no_stage_can_use_is_refused_with_the_reason() -> None:
    async def story(_swarm: MemorySwarm, asking: Client) -> None:
        request = await asking.request(Question(PROMPT, None, 20.0, {}))
        grammar = ("regex", "(")  # what our own check would never let through
        wrong = replace(request, sampling=replace(request.sampling, grammar=grammar))
        with pytest.raises(PeerRefused, match="unclosed group"):
            await asking.ask(wrong).finish()

    run(story)


def test_n_answers_are_those_of_their_seeds_and_the_prompt_is_computed_once() -> None:
    async def story(_swarm: MemorySwarm, asking: Client) -> None:
        prompt = "Nobody asked this before."  # of the very stages that other tests use, too
        options: dict[str, Any] = {"temperature": 1.9, "frequency_penalty": 0.5, "max_tokens": 12}
        found = await asking.generate(prompt, n=4, seed=11, **options)
        assert len({each.token_ids for each in found.choices}) == 4
        for index, each in enumerate(found.choices):
            alone = await asking.generate(prompt, seed=11 + index, **options)
            assert each.token_ids == alone.token_ids
        cached = [each.cached_tokens for each in found.choices]
        assert cached == [0, *3 * [found.prompt_tokens - 1]]

    run(story)


def test_a_stage_that_leaves_in_mid_answer_changes_neither_ids_nor_log_probabilities() -> None:
    async def story(swarm: MemorySwarm, asking: Client) -> None:
        options = TELLING | FORMATS["regex"] | {"max_tokens": 60}
        whole = await asking.generate(PROMPT, **options)
        async with asking.stream(PROMPT, **options) as pieces:
            await anext(pieces)
            await swarm.stages["a last"].server.drain(0)
            moved = await pieces.finish()
        assert moved.token_ids == whole.token_ids
        assert moved.route != whole.route
        told = [each.logprob for each in moved.logprobs]
        assert told == pytest.approx([each.logprob for each in whole.logprobs], abs=1e-3)

    run(story)
