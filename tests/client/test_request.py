"""Requests: what is refused before any peer is troubled."""

from typing import Any, cast

import pytest

from client.request import LocalModel, Options, Question
from client.text.tokenizer import ByteTokenizer, Messages
from client.text.tool_prompt import Tools
from swarm.errors import BadInput, BadSampling, PromptTooLong
from tests.client.scripted import SPEC

HELLO = [{"role": "user", "content": "Hello"}]
LOCAL = LocalModel(SPEC, ByteTokenizer(), (2,))


def question(
    prompt: Any = "hello", messages: Any = None, seconds: float = 1.0, **options: Any
) -> Any:
    return Question(prompt, messages, seconds, cast("Options", options))


def test_a_prompt_becomes_ids_and_options_become_sampling() -> None:
    request = LOCAL.request(question(max_tokens=9, temperature=0.5, seed=1, stop="END"))
    assert request.ids == tuple(b"hello")
    assert (request.sampling.max_tokens, request.sampling.seed) == (9, 1)
    assert request.sampling.stop == ("END",)
    assert request.sampling.stop_ids == (2,)
    assert request.capacity == 5 + 9


def test_biases_are_taken_by_number_and_by_text_as_in_json() -> None:
    request = LOCAL.request(question(logit_bias={"5": 1, "299": -2.5}))
    assert request.sampling.logit_bias == ((5, 1), (299, -2.5))
    assert LOCAL.request(question(logit_bias={5: 1})).sampling.logit_bias == ((5, 1),)
    assert LOCAL.request(question(logit_bias={})).sampling.to_map() == {"stop_ids": [2]}


def test_log_probabilities_are_asked_for_as_in_openais_api() -> None:
    wanted: list[dict[str, Any]] = [
        {},
        {"logprobs": False},
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 5},
    ]
    asked = [LOCAL.request(question(**options)).sampling.top_logprobs for options in wanted]
    assert asked == [None, None, 0, 5]


def test_each_of_n_answers_has_the_next_seed() -> None:
    request = LOCAL.request(question(n=3, seed=(1 << 63) - 2, temperature=1.0))
    seeds = [each.sampling.seed for each in request.choices()]
    assert seeds == [(1 << 63) - 2, (1 << 63) - 1, 0]
    assert {each.n for each in request.choices()} == {1}
    assert LOCAL.request(question(n=2)).choices() == [LOCAL.request(question())] * 2


def test_ids_may_be_given_instead_of_text() -> None:
    assert LOCAL.request(question([1, 2, 299])).ids == (1, 2, 299)


@pytest.mark.parametrize("prompt", ["", [], None])
def test_an_empty_prompt_is_refused(prompt: object) -> None:
    with pytest.raises(BadInput):
        LOCAL.request(question(prompt))


@pytest.mark.parametrize("ids", [[300], [-1], [1.0], ["a"], [True]])
def test_ids_outside_the_vocabulary_are_refused(ids: object) -> None:
    with pytest.raises(BadInput, match="outside"):
        LOCAL.request(question(ids))


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(PromptTooLong, match=r"4090 tokens.*4096 tokens"):
        LOCAL.request(question("x" * 4090, max_tokens=7))
    assert LOCAL.request(question("x" * 4090, max_tokens=6)).capacity == SPEC.context


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"presence_penalty": -3},
        {"frequency_penalty": 3},
        {"logit_bias": {300: 1.0}},
        {"logit_bias": {"x": 1.0}},
        {"logit_bias": {"9" * 5000: 1.0}},
        {"logit_bias": {5: 101}},
        {"logit_bias": {5: None}},
        {"logit_bias": [5, 1.0]},
        {"logit_bias": None},
        {"n": 0},
        {"n": 9},
        {"n": 1.0},
        {"n": None},
        {"logprobs": 3},
        {"top_logprobs": 3},
        {"top_logprobs": 21, "logprobs": True},
        {"top_logprobs": -1, "logprobs": True},
        {"seed": -1},
        {"stop": ""},
        {"stop": 5},
        {"stop": [1]},
        {"stop": ["a"] * 17},
        {"nonsense": 1},
    ],
)
def test_sampling_options_out_of_range_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(BadSampling, match=next(iter(options))):
        LOCAL.request(question(**options))


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_timeout_that_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(BadInput, match="timeout_seconds"):
        LOCAL.request(question(seconds=seconds))


@pytest.mark.parametrize(
    "messages", [[], [{}], [{"role": "user"}], [{"role": "user", "content": 5}], ["hi"]]
)
def test_malformed_messages_are_refused(messages: object) -> None:
    with pytest.raises(BadInput):
        LOCAL.request(question(None, messages))


def test_the_parts_of_a_message_are_joined_if_all_are_text() -> None:
    parts = [{"type": "text", "text": "Good"}, {"type": "text", "text": "day"}]
    seen: list[object] = []

    class Chatty(ByteTokenizer):
        def ids_of_messages(self, messages: Messages, tools: Tools = ()) -> list[int]:
            seen.extend(messages)
            return [1]

    local = LocalModel(SPEC, Chatty(), ())
    local.request(question(None, [{"role": "user", "content": parts, "name": "x"}]))
    assert seen == [{"role": "user", "content": "Good\nday", "name": "x"}]


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"type": "image_url", "image_url": {"url": "data:"}}, "image_url"),
        ({"type": "text"}, "text"),
        ({"type": "text", "text": 5}, "text"),
        ("hello", "None"),
    ],
)
def test_parts_that_are_not_text_are_refused_by_their_type(part: object, named: str) -> None:
    with pytest.raises(BadInput, match=f"part of type .*{named}.*only text is read"):
        LOCAL.request(question(None, [{"role": "user", "content": [part]}]))


@pytest.mark.parametrize("prompt", [b"abc", bytearray(b"abc"), 5, {"a": 1}, iter([1])])
def test_a_prompt_that_is_neither_text_nor_ids_is_refused(prompt: object) -> None:
    with pytest.raises(BadInput, match=rf"of type {type(prompt).__name__}; give text"):
        LOCAL.request(question(prompt))


@pytest.mark.parametrize("messages", ["hi", b"hi", 5, {"role": "user", "content": "hi"}])
def test_messages_that_are_no_list_are_refused(messages: object) -> None:
    with pytest.raises(BadInput, match="Write messages like"):
        LOCAL.request(question(None, messages))


@pytest.mark.parametrize("count", [SPEC.context, 2**20, 2**80])
def test_an_answer_longer_than_the_context_is_refused_in_the_models_figures(count: int) -> None:
    with pytest.raises(BadSampling, match=rf"max_tokens is {count}.*\[1, 4095\].*4096 tokens"):
        LOCAL.request(question(max_tokens=count))


def test_a_prompt_of_120_kilobytes_is_refused_by_length_at_once() -> None:
    with pytest.raises(PromptTooLong, match=r"120000 tokens.*4096 tokens"):
        LOCAL.request(question("x" * 120_000))


def test_prompt_and_messages_exclude_each_other() -> None:
    with pytest.raises(BadInput, match="either"):
        LOCAL.request(question("a", [{"role": "user", "content": "b"}]))


class TurnTokenizer(ByteTokenizer):
    """Bytes whose chat ends a turn with an id of its own."""

    end_of_turn: tuple[int, ...] = (9, 2)

    def ids_of_messages(self, messages: Messages, tools: Tools = ()) -> list[int]:
        return [1]


def test_a_chat_also_ends_at_the_tokenizers_end_of_turn_and_a_prompt_does_not() -> None:
    local = LocalModel(SPEC, TurnTokenizer(), (2,))
    assert local.request(question(None, HELLO)).sampling.stop_ids == (2, 9)
    assert local.request(question()).sampling.stop_ids == (2,)


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        (question("a\ud800"), "prompt"),
        (question(None, [{"role": "user", "content": "\udcff"}]), "message"),
        (question(None, [{"role": "\udcff", "content": ""}]), "message"),
        (question(stop=["\ud83d"]), "stop string"),
    ],
)
def test_halves_of_surrogate_pairs_are_refused(asked: Question, what: str) -> None:
    with pytest.raises(BadInput, match=f"The {what} is not valid Unicode") as refused:
        LocalModel(SPEC, TurnTokenizer(), ()).request(asked)
    str(refused.value).encode()
