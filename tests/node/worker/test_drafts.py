"""Guesses change how many steps a text takes, never its tokens: real shards, real groups."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
)

from node.worker.messages import Compute, Computed, Failed, Release, Reserve
from node.worker.shard import LoadedShard
from swarm.wire.sampling_params import Sampling
from swarm.wire.token_ids import ids_to_bytes
from tests.node.worker.shards import FOLDER, computed, lone_shard, passed_on, shard_group

ASKED = "<|begin|><|user|>What are the four seasons?<|end|><|assistant|>"
ANSWER = "There are four seasons in a year. They are spring, summer, autumn and winter.<|end|>"
TEXT = ASKED + ANSWER + ASKED.removeprefix("<|begin|>")  # asked again: the answer repeats itself
GREEDY: dict[str, Any] = {}
SEEDED: dict[str, Any] = {"temperature": 0.9, "seed": 5}
EVERY: dict[str, Any] = SEEDED | {"top_k": 50, "top_p": 0.95, "min_p": 0.02}
OPTIONS = {
    "greedy": GREEDY,
    "greedy, penalty": {"repetition_penalty": 1.3},
    "seeded": SEEDED,
    "top k": SEEDED | {"top_k": 20},
    "top p": SEEDED | {"top_p": 0.8},
    "min p": SEEDED | {"min_p": 0.1},
    "all": EVERY | {"repetition_penalty": 1.2},
    "presence and frequency": SEEDED | {"presence_penalty": 0.5, "frequency_penalty": 0.3},
    "bias": GREEDY | {"logit_bias": ((5, 9.0), (7, 8.5)), "presence_penalty": 2.0},
}
OWN = ("presence_penalty", "frequency_penalty", "logit_bias")  # transformers has none of them
LONGEST = 60  # ids
Guess = Callable[[list[int], list[int]], Sequence[int]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def stages() -> tuple[LoadedShard, LoadedShard]:
    return lone_shard(0, 3), lone_shard(3, 8)


@cache
def prompt() -> list[int]:
    tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
    ids: list[int] = tokenizer(TEXT)["input_ids"]
    return ids


@cache
def whole_model() -> Any:
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(FOLDER, dtype=torch.float32).eval()


def whole(options: dict[str, Any], most: int = 40) -> list[int]:
    """What transformers' own generate adds: the first ids do not depend on how many follow."""
    return _whole_of(tuple(options.items()))[:most]


@cache
def _whole_of(items: tuple[tuple[str, Any], ...]) -> list[int]:
    options = dict(items)
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None}
    torch.manual_seed(options.get("seed", 0))
    chosen = {name: value for name, value in options.items() if name != "seed"}
    if "seed" in options:
        chosen = neutral | chosen | {"do_sample": True}
    else:
        chosen |= {"do_sample": False}
    if own := {name: chosen.pop(name) for name in list(chosen) if name in OWN}:
        chosen["logits_processor"] = LogitsProcessorList([Penalties(**own)])
    ids = whole_model().generate(
        torch.tensor([prompt()]), max_new_tokens=LONGEST, eos_token_id=None, **chosen
    )
    return list(ids[0, len(prompt()) :].tolist())


class Penalties(LogitsProcessor):
    """What transformers lacks, by the formulas of the API that it comes from."""

    def __init__(self, **options: Any) -> None:
        self._sampling = Sampling(**options)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(input_ids[0, len(prompt()) :], minlength=scores.shape[-1])
        for token, bias in self._sampling.logit_bias:
            scores[0, token] += bias
        scores -= self._sampling.frequency_penalty * counts
        return scores - self._sampling.presence_penalty * (counts > 0)


class Told:
    """A text that was generated with guesses, and how that went."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.ids: list[int] = []
        self.finish = ""
        self.steps = self.drafted = self.accepted = 0


def tell(
    chain: Sequence[LoadedShard],
    options: dict[str, Any],
    *,
    guess: Guess | None = None,
    known: Sequence[int] = (),
) -> Told:
    """Generate through a chain of stages, with their guesses or with those of `guess`."""
    told = Told(Sampling(**({"max_tokens": 40, "speculate": 8} | options)))
    told.ids = list(known)
    start = [*prompt(), *known]
    capacity = len(prompt()) + told.sampling.max_tokens
    sampling = told.sampling.to_map()
    for stage in chain:
        order = Reserve("s", capacity, len(known), sampling, body=ids_to_bytes(start))
        stage.apply([order])
    step = Compute("s", 0, len(start), True, "i32", body=ids_to_bytes(start))
    while not told.finish:
        answer = through(chain, step)
        first = answer.position + answer.tokens - len(step.drafts)
        assert first == len(prompt()) + len(told.ids)
        told.steps += 1
        told.drafted += len(step.drafts)
        told.accepted += min(len(step.drafts), len(answer.ids) - 1)
        told.ids += answer.ids
        told.finish = answer.finish
        left = capacity - len(prompt()) - len(told.ids)
        drafts = list(guess(told.ids, answer.drafts))[:left] if guess else answer.drafts
        body = ids_to_bytes([told.ids[-1], *drafts])
        step = Compute(
            "s", first + len(answer.ids) - 1, 1 + len(drafts), True, "i32", drafts, body=body
        )
    for stage in chain:
        stage.apply([Release("s")])
    return told


def through(chain: Sequence[LoadedShard], order: Compute) -> Computed:
    answer = computed(chain[0].apply([order]))
    for stage in chain[1:]:
        following = passed_on(answer)
        where = (following.session, following.position, following.tokens, following.sample)
        answer = computed(
            stage.apply([Compute(*where, following.dtype, order.drafts, body=following.body)])
        )
    return answer


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_guesses_change_no_token(options: dict[str, Any]) -> None:
    told = tell(stages(), options)
    assert told.ids == whole(options)
    assert told.finish == "length"


def test_a_text_that_repeats_itself_takes_far_fewer_steps() -> None:
    told = tell(stages(), GREEDY | {"max_tokens": LONGEST})
    assert told.ids == whole(GREEDY, LONGEST)
    assert told.steps < LONGEST / 2
    assert told.accepted == LONGEST - told.steps


def test_no_guess_is_made_where_none_is_wanted() -> None:
    told = tell(stages(), GREEDY | {"speculate": 0})
    assert (told.steps, told.drafted) == (40, 0)
    assert tell(stages(), GREEDY | {"speculate": 2}).ids == told.ids


@pytest.mark.parametrize("options", [GREEDY, EVERY], ids=["greedy", "seeded"])
def test_two_uneven_ranks_go_back_over_wrong_guesses_alike(options: dict[str, Any]) -> None:
    group = shard_group(0, 5, (5, 3))
    try:
        told = tell([group.leader, lone_shard(5, 8)], options, guess=half_right(whole(options)))
        assert told.ids == whole(options)
        assert 0 < told.accepted < told.drafted
    finally:
        group.close()


def half_right(truth: Sequence[int]) -> Guess:
    """Guess two ids rightly and two wrongly, every time."""

    def guess(ids: list[int], drafts: list[int]) -> list[int]:
        right = list(truth[len(ids) : len(ids) + 2])
        return [*right, 7, 7]

    return guess


@settings(max_examples=15, deadline=None)
@given(st.data())
@pytest.mark.parametrize("options", [GREEDY, EVERY], ids=["greedy", "seeded"])
def test_whatever_is_guessed_the_tokens_stay(options: dict[str, Any], data: st.DataObject) -> None:
    truth = whole(options, 20)

    def guess(ids: list[int], drafts: list[int]) -> list[int]:
        right = data.draw(st.integers(0, 4))
        wrong = data.draw(st.lists(st.integers(0, 200), max_size=4))
        return [*truth[len(ids) : len(ids) + right], *wrong]

    assert tell(stages(), options | {"max_tokens": 20}, guess=guess).ids == truth


@pytest.mark.parametrize("place", range(8, 16))
def test_an_id_that_ends_the_text_ends_it_inside_a_run_of_guesses(place: int) -> None:
    truth = whole(GREEDY)
    end = truth.index(truth[place])
    told = tell(stages(), GREEDY | {"stop_ids": (truth[place],)})
    assert told.ids == truth[: end + 1]
    assert told.finish == "stop"


@pytest.mark.parametrize("most", range(1, 10))
def test_no_text_is_longer_than_was_asked_for(most: int) -> None:
    told = tell(stages(), GREEDY | {"max_tokens": most})
    assert told.ids == whole(GREEDY, most)
    assert told.finish == "length"


@pytest.mark.parametrize(
    "options", [GREEDY, EVERY, OPTIONS["presence and frequency"]], ids=["greedy", "seeded", "own"]
)
@pytest.mark.parametrize("kept", [1, 7, 30])
def test_a_replay_goes_on_with_the_same_tokens(options: dict[str, Any], kept: int) -> None:
    truth = whole(options)
    assert tell(stages(), options, known=truth[:kept]).ids == truth


def test_more_guesses_than_rows_fail_their_session_alone() -> None:
    for stage in stages()[:1]:
        stage.apply([Reserve("bad", 64, 0, {}, body=ids_to_bytes([5]))])
        order = Compute("bad", 0, 2, True, "i32", [1, 2], body=ids_to_bytes([5, 1]))
        (answer,) = stage.apply([order])
        assert isinstance(answer, Failed)
        stage.apply([Release("bad")])
