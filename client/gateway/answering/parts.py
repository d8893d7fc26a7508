"""Parts: what an answer is made of - text, what was thought before it, calls of tools."""

from dataclasses import dataclass
from typing import Protocol

from client.generation import Generation
from swarm.wire.token_logprobs import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Text:
    """Words for the person who asks."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Words that the model writes to itself."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model wants to be called."""

    id: str
    name: str
    arguments: str  # a JSON object, as text: what every client reads


@dataclass(frozen=True, slots=True)
class Scores:
    """How likely the model thought the tokens that came; told beside their text, if asked for."""

    tokens: tuple[TokenLogprobs, ...]


Part = Text | Reasoning | ToolCall | Scores


@dataclass(frozen=True, slots=True)
class Finished:
    """One whole answer."""

    parts: tuple[Part, ...]
    generation: Generation

    @property
    def text(self) -> str:
        """All that is for the person."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def reasoning(self) -> str:
        """All that the model wrote to itself."""
        return "".join(part.text for part in self.parts if isinstance(part, Reasoning))

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The tools to be called, in order."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))

    @property
    def is_cut(self) -> bool:
        """Whether the answer ended because it may not be longer."""
        return self.generation.finish_reason == "length"


class Reader(Protocol):
    """Finds the parts in what a model writes."""

    def feed(self, piece: str) -> list[Part]:
        """Take more of the text; returns what is certain now."""

    def finish(self) -> list[Part]:
        """The text has ended; returns what was held back."""


class PlainReader:
    """Takes all that a model writes as text."""

    def feed(self, piece: str) -> list[Part]:
        """The piece, as it is."""
        return [Text(piece)]

    def finish(self) -> list[Part]:
        """Nothing: no text was held back."""
        return []
