"""Readers: what finds thoughts and calls of tools in the text of one model."""

import secrets
from collections.abc import Callable

from client.gateway.answering.answer_response import Desk
from client.gateway.answering.parts import Part, PlainReader, Reader, Reasoning, Text, ToolCall
from client.gateway.answering.preparing import Wish
from client.request import Request
from client.text.reasoning import BEGIN, ReasoningReader, Thought
from client.text.tool_calls import Call, CallFormat, ToolCallReader

END_OF_PROMPT = 16  # ids, which end with the tag if the template has opened it


class PartReader:
    """Thoughts first, then text and calls."""

    def __init__(
        self, reasoning: ReasoningReader | None, calls: ToolCallReader | None, most_calls: int
    ) -> None:
        self._reasoning, self._tool_calls = reasoning, calls
        self._calls_left = most_calls

    def feed(self, piece: str) -> list[Part]:
        """Take more of the text; returns what is certain now."""
        found = self._reasoning.feed(piece) if self._reasoning else [piece]
        return [part for each in found for part in self._parts(each)]

    def finish(self) -> list[Part]:
        """The text has ended; returns what was held back."""
        found = self._reasoning.finish() if self._reasoning else []
        parts = [part for each in found for part in self._parts(each)]
        return [*parts, *self._read(self._tool_calls.finish() if self._tool_calls else [])]

    def _parts(self, each: str | Thought) -> list[Part]:
        if isinstance(each, Thought):
            return [Reasoning(each.text)]
        return self._read(self._tool_calls.feed(each)) if self._tool_calls else [Text(each)]

    def _read(self, found: list[str | Call]) -> list[Part]:
        parts: list[Part] = []
        for each in found:
            if isinstance(each, str):
                parts.append(Text(each))
            elif self._calls_left:
                self._calls_left -= 1
                parts.append(ToolCall(f"call_{secrets.token_hex(12)}", each.name, each.arguments))
        return parts


async def reader_for(desk: Desk, wish: Wish, request: Request) -> Callable[[], Reader]:
    """What makes a reader for each answer to a chat."""
    tokenizer = (await desk.client.model()).tokenizer
    template = tokenizer.template() if wish.messages is not None else ""
    thinks = BEGIN in template
    if not (thinks or wish.tools):
        return PlainReader
    end = tokenizer.text_of(request.ids[-END_OF_PROMPT:])
    taught = CallFormat.of(template)
    format_ = taught.enforced if wish.calls.must else taught
    names = [str(tool["function"]["name"]) for tool in wish.tools]

    def make() -> Reader:
        calls = ToolCallReader(format_, names) if wish.tools else None
        most_calls = -1 if wish.calls.are_parallel else 1
        return PartReader(ReasoningReader.behind(end) if thinks else None, calls, most_calls)

    return make
