"""Writer: how an API writes an answer, whole or as a stream, and what all of them write alike."""

from collections.abc import Sequence
from typing import Any, Protocol

from client.gateway.answering.parts import Finished, Part
from client.gateway.http.api_error import ApiError
from client.gateway.http.json_response import dump

EVENTS = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"


class Writer(Protocol):
    """One answer in one API's words; the bytes of a stream may be empty."""

    media_type: str  # of a stream

    def begin(self) -> bytes:
        """What comes first."""

    def part(self, index: int, part: Part) -> bytes:
        """A part of one choice."""

    def end(self, index: int, finished: Finished) -> bytes:
        """A choice is complete."""

    def close(self, choices: Sequence[Finished]) -> bytes:
        """What comes last, when all choices are complete."""

    def fail(self, error: ApiError) -> bytes:
        """What comes last in its place."""

    def comment(self, text: str) -> bytes:
        """A word for who waits, which no client takes for a part of the answer."""

    def whole(self, choices: Sequence[Finished]) -> dict[str, Any]:
        """The answer in one piece."""


def data(value: object) -> bytes:
    """A server-sent event without a name."""
    return b"data: " + dump(value) + b"\n\n"


def event(name: str, value: object) -> bytes:
    """A server-sent event with a name."""
    return b"event: " + name.encode() + b"\ndata: " + dump(value) + b"\n\n"


def comment(text: str) -> bytes:
    """A line that every reader of server-sent events passes over."""
    return b": " + " ".join(text.split()).encode(errors="replace") + b"\n\n"
