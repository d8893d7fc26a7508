"""Chat messages as OpenAI's clients send them, made into what a model's template reads."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any, ClassVar, Literal

from pydantic import Field

from client.gateway.api.checked_body import CheckedBody, plain_text
from client.gateway.http.api_error import bad_request

SYSTEM = ("system", "developer")


class ContentPart(CheckedBody):
    """One part of a message; only text is read."""

    model_config = CheckedBody.model_config | {"extra": "allow"}
    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control", "annotations"})
    type: str
    text: str = ""
    refusal: str = ""

    def plain(self) -> str:
        """The part's text; raises ApiError if it is something else."""
        if self.type in ("text", "input_text", "output_text"):
            return self.text
        if self.type == "refusal":
            return self.refusal
        message = f"A message has a part of type {self.type!r:.40}; only text is read here."
        raise bad_request(message, "messages", "unsupported_content")


class FunctionCall(CheckedBody):
    """Which function was called, and how."""

    name: str
    arguments: str | dict[str, Any] = ""


class MessageCall(CheckedBody):
    """A call of a tool in an earlier answer."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"index", "provider_specific_fields"})
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall

    def as_template(self) -> dict[str, Any]:
        """The call as chat templates read it."""
        return call_turn(self.id, self.function.name, self.function.arguments)


class ChatMessage(CheckedBody):
    """One message; what other servers add to their answers is passed over."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            *("annotations", "audio", "cache_control", "id", "provider_specific_fields"),
            *("reasoning", "reasoning_content", "reasoning_details", "thinking_blocks"),
        }
    )
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] = ""
    refusal: str = ""
    name: str = ""
    tool_calls: list[MessageCall] = Field(default_factory=list)
    tool_call_id: str = ""

    def plain(self) -> str:
        """The text of all parts."""
        return self.refusal if self.content == "" else plain_text(self.content)


class ChatMessages(CheckedBody):
    """A body that has messages."""

    messages: list[ChatMessage] = Field(min_length=1)

    def turns(self) -> list[dict[str, Any]]:
        """What a template reads: one system message at the start, whatever they were called."""
        first = list(takewhile(lambda message: message.role in SYSTEM, self.messages))
        rest = [_turn(message) for message in self.messages[len(first) :]]
        return [*system_turn(message.plain() for message in first), *rest]


def call_turn(call_id: str, name: str, arguments: str | dict[str, Any]) -> dict[str, Any]:
    """A call as chat templates read it: arguments as an object, if they are one."""
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments or "{}")
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def system_turn(texts: Iterable[str]) -> Sequence[dict[str, Any]]:
    """One system message of several, none if they are empty: most templates know but one."""
    text = "\n\n".join(filter(None, texts))
    return [{"role": "system", "content": text}] if text else []


def _turn(message: ChatMessage) -> dict[str, Any]:
    role = "system" if message.role in SYSTEM else message.role
    turn: dict[str, Any] = {"role": role, "content": message.plain()}
    turn |= {"name": message.name} if message.name else {}
    turn |= {"tool_call_id": message.tool_call_id} if message.tool_call_id else {}
    if message.tool_calls:
        turn["tool_calls"] = [call.as_template() for call in message.tool_calls]
    return turn
