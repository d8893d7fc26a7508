"""Request: what a person asked for, checked against the model before any peer is troubled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from client.response_format import grammar_of
from client.text.tokenizer import (
    ByteTokenizer,
    Messages,
    NoTokenizer,
    Tokenizer,
    read_stop_ids,
    read_tokenizer,
)
from client.text.tool_prompt import Tools
from swarm.checkpoint.folder import find_model, read_spec
from swarm.checkpoint.known_specs import recall_spec
from swarm.errors import BadInput, BadSampling, PromptTooLong
from swarm.formatting import printable
from swarm.model_spec import ModelSpec
from swarm.wire.sampling_params import Sampling

MOST_CHOICES = 8
SEEDS = 1 << 63
LONGEST_ID = 10  # digits
MESSAGE_FORM = 'Write messages like {"role": "user", "content": "Hello"}.'


class Options(TypedDict, total=False):
    """Sampling options by name, as `generate` and `stream` take them; all are optional."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | Mapping[str, float]
    seed: int | None
    stop: str | Sequence[str]
    speculate: int | None
    n: int
    logprobs: bool
    top_logprobs: int | None
    response_format: Mapping[str, Any] | None
    structured_outputs: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Question:
    """What a person asks, as it was written."""

    prompt: str | Sequence[int] | None
    messages: Messages | None
    timeout_seconds: float
    options: Options
    tools: Tools = ()  # that the chat's template tells the model of


@dataclass(frozen=True, slots=True)
class Request:
    """One generation to run: prompt ids, how to sample, how long to wait without progress."""

    ids: tuple[int, ...]
    sampling: Sampling
    timeout_seconds: float
    n: int = 1  # answers to the same prompt

    def choices(self) -> "list[Request]":
        """A request for each of the n answers: the seed of each is one more, if there is a seed."""
        seeds = [
            None if self.sampling.seed is None else (self.sampling.seed + index) % SEEDS
            for index in range(self.n)
        ]
        return [replace(self, sampling=replace(self.sampling, seed=seed), n=1) for seed in seeds]

    @property
    def capacity(self) -> int:
        """KV tokens that every stage must reserve."""
        return len(self.ids) + self.sampling.max_tokens


@dataclass(frozen=True)
class LocalModel:
    """What the asking side knows of the model: dimensions, tokenizer, ids that end an answer."""

    spec: ModelSpec
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]

    @classmethod
    def read(cls, name: str, *, raw_bytes: bool = False) -> "LocalModel":
        """Find and read a model by name; blocks on the disk, or on the hub; raises BadModel."""
        return cls.of(find_model(name), name, raw_bytes=raw_bytes)

    @classmethod
    def of(cls, folder: Path, name: str, *, raw_bytes: bool = False) -> "LocalModel":
        """Read the model in a folder; raises BadModel."""
        spec = recall_spec(folder, name) or read_spec(folder, name)
        tokenizer = read_tokenizer(folder, spec, raw_bytes=raw_bytes)
        return cls(spec, tokenizer, read_stop_ids(folder))

    def request(self, question: Question) -> Request:
        """Check everything about a question that needs no peer; raises BadInput.

        Blocks while a chat is rendered, for seconds at the most.
        """
        seconds = question.timeout_seconds
        if not seconds > 0:
            cause = f"timeout_seconds is {seconds!r:.40};"
            raise BadInput(cause, "it must be above zero.", option="timeout_seconds")
        self._check_length(question.options.get("max_tokens"))
        _check_n(question.options.get("n", 1))
        sampling = sampling_of(question.options, self._stop_ids_for(question))
        sampling.check_ids(self.spec.vocab)
        if sampling.grammar and isinstance(self.tokenizer, ByteTokenizer | NoTokenizer):
            raise BadInput("A format needs the model's own tokenizer.", "Ask for plain text.")
        ids = self.ids_of(question.prompt, question.messages, question.tools)
        total = len(ids) + sampling.max_tokens
        if total > self.spec.context:
            raise PromptTooLong(
                f"The prompt has {len(ids)} tokens and the answer may have {sampling.max_tokens}, "
                f"but the context of {self.spec.name} is {self.spec.context} tokens.",
                "Shorten the prompt or ask for fewer tokens.",
            )
        return Request(tuple(ids), sampling, seconds, question.options.get("n", 1))

    def _check_length(self, max_tokens: object) -> None:
        """Refuse an answer that no prompt leaves room for, in the model's own figures."""
        if type(max_tokens) is int and max_tokens >= self.spec.context:
            raise BadSampling(
                f"max_tokens is {max_tokens!r:.40};",
                f"it must be a whole number in [1, {self.spec.context - 1}]: the context of "
                f"{self.spec.name} is {self.spec.context} tokens, the prompt included.",
                option="max_tokens",
            )

    def _stop_ids_for(self, question: Question) -> Sequence[int]:
        """A chat ends where the tokenizer ends a turn, too; a prompt where transformers ends it."""
        if question.messages is None:
            return self.stop_ids
        return tuple(dict.fromkeys((*self.stop_ids, *self.tokenizer.end_of_turn)))

    def ids_of(
        self, prompt: str | Sequence[int] | None, messages: Messages | None, tools: Tools = ()
    ) -> Sequence[int]:
        """The ids of a prompt or of a chat, however many; raises BadInput. Blocks as `request`."""
        if (prompt is None) == (messages is None):
            raise BadInput("Give either a prompt or messages.", "One of them, not both.")
        if messages is not None:
            ids: Sequence[int] = self.tokenizer.ids_of_messages(_checked(messages), tools)
        elif isinstance(prompt, str):
            ids = self.tokenizer.ids_of_text(_text(prompt, "prompt")) if prompt else ()
        else:
            ids = _listed(prompt)
        if not ids:
            raise BadInput("The prompt is empty.", "Write at least one character.")
        if not all(type(token) is int and 0 <= token < self.spec.vocab for token in ids):
            raise BadInput(
                f"The prompt holds an id outside [0, {self.spec.vocab}).",
                "Use ids of this model's own tokenizer.",
            )
        return ids


def sampling_of(options: Options, stop_ids: Sequence[int] = ()) -> Sampling:
    """The sampling of named options; raises BadSampling on unknown names and wrong values."""
    values: dict[str, object] = {name: v for name, v in options.items() if name != "n"}
    values["logit_bias"] = _flat_bias(options.get("logit_bias", {}))
    values["top_logprobs"] = _top_logprobs(values.pop("logprobs", False), values)
    values["grammar"] = grammar_of(
        values.pop("response_format", None), values.pop("structured_outputs", None)
    )
    stop = values.pop("stop", ())
    words = (stop,) if isinstance(stop, str) else stop
    if not isinstance(words, Sequence):
        raise BadSampling(f"stop is {stop!r};", "it must be a string or a list of strings.")
    for word in filter(_is_text, words):
        _text(word, "stop string")
    return Sampling.from_map({**values, "stop": tuple(words), "stop_ids": tuple(stop_ids)})


def _check_n(n: object) -> None:
    if type(n) is not int or not 1 <= n <= MOST_CHOICES:
        need = f"it must be a whole number in [1, {MOST_CHOICES}]."
        raise BadSampling(f"n is {n!r:.40};", need, option="n")


def _flat_bias(biases: object) -> list[object]:
    """Id, bias, id, bias ... of a mapping, whose ids may be text, as in JSON."""
    if not isinstance(biases, Mapping):
        need = "it must be a mapping from token ids to biases."
        raise BadSampling(f"logit_bias is {biases!r:.40};", need, option="logit_bias")
    return [value for token, bias in biases.items() for value in (_id_of(token), bias)]


def _top_logprobs(are_wanted: object, values: Mapping[str, object]) -> object:
    """How many likeliest ids are to be told; None if nothing is."""
    top = values.get("top_logprobs")
    if type(are_wanted) is not bool:
        need = "it must be true or false; top_logprobs says how many."
        raise BadSampling(f"logprobs is {are_wanted!r:.40};", need, option="logprobs")
    if are_wanted:
        return 0 if top is None else top
    if top:
        need = "it needs logprobs to be true."
        raise BadSampling(f"top_logprobs is {top!r:.40};", need, option="top_logprobs")
    return None


def _id_of(token: object) -> object:
    is_number = isinstance(token, str) and token.isdecimal() and len(token) <= LONGEST_ID
    return int(token) if isinstance(token, str) and is_number else token


def _listed(prompt: object) -> Sequence[int]:
    if isinstance(prompt, bytes | bytearray | memoryview) or not isinstance(prompt, Sequence):
        raise BadInput(
            f"The prompt is of type {type(prompt).__name__};", "give text or a list of token ids."
        )
    return prompt


def _checked(messages: object) -> Messages:
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise BadInput(f"messages is of type {type(messages).__name__};", MESSAGE_FORM)
    if not messages:
        raise BadInput("There are no messages.", "Write at least one.")
    return [_checked_message(message) for message in messages]


def _checked_message(message: object) -> Mapping[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BadInput("A message lacks its role.", MESSAGE_FORM)
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        content = "\n".join(_text_of_part(part) for part in content)
    if not isinstance(content, str):
        raise BadInput("A message lacks its content.", MESSAGE_FORM)
    for text in (message["role"], content):
        _text(text, "message")
    return {**message, "content": content}


def _text_of_part(part: object) -> str:
    """The text of one part of a message, in the form that OpenAI's clients send."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise BadInput(
            f"A message has a part of type {kind!r:.40};",
            'only text is read: {"type": "text", "text": "Hello"}.',
        )
    return text


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _text(text: str, what: str) -> str:
    """The text itself; raises BadInput if it has halves of surrogate pairs, which are no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = printable(text[error.start])
        raise BadInput(
            f"The {what} is not valid Unicode: character {error.start + 1} is {half}.",
            "Give text that was decoded from UTF-8.",
        ) from error
    return text
