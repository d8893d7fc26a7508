"""Request: what a person asked for, checked against the model before any peer is troubled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from client.tokenizer import Messages, Tokenizer, read_stop_ids, read_tokenizer
from swarm.checkpoint import find_model, read_spec
from swarm.errors import BadInput, BadSampling, PromptTooLong
from swarm.model import ModelSpec
from swarm.sampling import Sampling


class Options(TypedDict, total=False):
    """Sampling options by name, as `generate` and `stream` take them; all are optional."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    speculate: int | None


@dataclass(frozen=True, slots=True)
class Question:
    """What a person asks, as it was written."""

    prompt: str | Sequence[int] | None
    messages: Messages | None
    timeout_seconds: float
    options: Options


@dataclass(frozen=True, slots=True)
class Request:
    """One generation to run: prompt ids, how to sample, how long to wait without progress."""

    ids: tuple[int, ...]
    sampling: Sampling
    timeout_seconds: float

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
    def read(cls, name: str) -> "LocalModel":
        """Find and read a model by name; blocks on the disk, or on the hub; raises BadModel."""
        return cls.of(find_model(name), name)

    @classmethod
    def of(cls, folder: Path, name: str) -> "LocalModel":
        """Read the model in a folder; raises BadModel."""
        spec = read_spec(folder, name)
        return cls(spec, read_tokenizer(folder, spec), read_stop_ids(folder))

    def request(self, question: Question) -> Request:
        """Check everything about a question that needs no peer; raises BadInput."""
        seconds = question.timeout_seconds
        if not seconds > 0:
            raise BadInput(f"timeout_seconds is {seconds!r};", "it must be above zero.")
        sampling = sampling_of(question.options, self.stop_ids)
        ids = self._ids_of(question.prompt, question.messages)
        total = len(ids) + sampling.max_tokens
        if total > self.spec.context:
            raise PromptTooLong(
                f"The prompt has {len(ids)} tokens and the answer may have {sampling.max_tokens}, "
                f"but the context of {self.spec.name} is {self.spec.context} tokens.",
                "Shorten the prompt or ask for fewer tokens.",
            )
        return Request(tuple(ids), sampling, seconds)

    def _ids_of(
        self, prompt: str | Sequence[int] | None, messages: Messages | None
    ) -> Sequence[int]:
        if (prompt is None) == (messages is None):
            raise BadInput("Give either a prompt or messages.", "One of them, not both.")
        if messages is not None:
            ids: Sequence[int] = self.tokenizer.ids_of_messages(_checked(messages))
        else:
            ids = self.tokenizer.ids_of_text(prompt) if isinstance(prompt, str) else prompt or ()
        if not ids or prompt == "":
            raise BadInput("The prompt is empty.", "Write at least one character.")
        if not all(type(token) is int and 0 <= token < self.spec.vocab for token in ids):
            raise BadInput(
                f"The prompt holds an id outside [0, {self.spec.vocab}).",
                "Use ids of this model's own tokenizer.",
            )
        return ids


def sampling_of(options: Options, stop_ids: Sequence[int] = ()) -> Sampling:
    """The sampling of named options; raises BadSampling on unknown names and wrong values."""
    values = dict(options)
    stop = values.pop("stop", ())
    words = (stop,) if isinstance(stop, str) else stop
    if not isinstance(words, Sequence):
        raise BadSampling(f"stop is {stop!r};", "it must be a string or a list of strings.")
    return Sampling.from_map({**values, "stop": tuple(words), "stop_ids": tuple(stop_ids)})


def _checked(messages: Messages) -> Messages:
    for message in messages:
        texts = (message.get("role"), message.get("content")) if hasattr(message, "get") else ()
        if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            raise BadInput(
                "A message lacks its role or content.",
                'Write messages like {"role": "user", "content": "Hello"}.',
            )
    if not messages:
        raise BadInput("There are no messages.", "Write at least one.")
    return messages
