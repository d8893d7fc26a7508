"""ResponsesWriter: an answer as OpenAI's Responses API has it, whole or as numbered events."""

import secrets
import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from client.gateway.answering.figures import timings, usage
from client.gateway.answering.parts import Finished, Part, Reasoning, Scores, Text, ToolCall
from client.gateway.answering.writer import EVENTS, comment, event
from client.gateway.http.api_error import ApiError, openai_body

Item = dict[str, Any]
GROWING = {  # what grows in an item of each kind: its part, and the events' name for it
    Text: ("output_text", "response.output_text"),
    Reasoning: ("reasoning_text", "response.reasoning_text"),
}


class ResponsesWriter:
    """One response: items of text, thoughts and calls, in order."""

    media_type = EVENTS

    def __init__(self, model: str, echoed: dict[str, Any]) -> None:
        self._id = f"resp_{secrets.token_hex(16)}"
        self._model, self._echoed = model, echoed
        self._created = int(time.time())
        self._number = -1  # of the last event
        self._items: list[Item] = []
        self._open: type[Text] | type[Reasoning] | None = None  # what the last item holds
        self._text = ""  # of the last item, as long as it grows

    def begin(self) -> bytes:
        """An empty response."""
        response = self._response("in_progress")
        begun = self._event("response.created", response=response)
        return begun + self._event("response.in_progress", response=response)

    def part(self, index: int, part: Part) -> bytes:
        """More of an item, or a new one."""
        if isinstance(part, ToolCall):
            return self._end_item() + self._called(part)
        return b"" if isinstance(part, Scores) else self._grow(part)

    def end(self, index: int, finished: Finished) -> bytes:
        """The last item is complete."""
        return self._end_item()

    def close(self, choices: Sequence[Finished]) -> bytes:
        """The whole response once more, and what it took."""
        response = self._ended(choices, self._items)
        name = "response.completed" if response["status"] == "completed" else "response.incomplete"
        return self._event(name, response=response)

    def fail(self, error: ApiError) -> bytes:
        """A failed response for Codex, and the error that OpenAI's own client raises."""
        shown = {"code": error.code or error.kind, "message": error.message}
        failed = {**self._response("failed"), "error": shown}
        told = {**openai_body(error), **shown, "param": error.param}
        return self._event("response.failed", response=failed) + self._event("error", **told)

    def comment(self, text: str) -> bytes:
        """A line that clients pass over."""
        return comment(text)

    def whole(self, choices: Sequence[Finished]) -> dict[str, Any]:
        """The answer in one piece."""
        return self._ended(choices, _items_of(choices[0]))

    def _grow(self, part: Text | Reasoning) -> bytes:
        begun = b"" if self._open is type(part) else self._begin_item(part)
        self._text += part.text
        name = f"{GROWING[type(part)][1]}.delta"
        more: dict[str, Any] = {"logprobs": []} if isinstance(part, Text) else {}
        return begun + self._event(name, **self._place(), delta=part.text, **more)

    def _begin_item(self, part: Text | Reasoning) -> bytes:
        ended = self._end_item()
        self._open, self._text = type(part), ""
        self._items.append(_item(type(part), "", "in_progress"))
        empty = {**self._items[-1], "content": []}
        added = self._event("response.output_item.added", output_index=self._last, item=empty)
        shown = _content(type(part), "")
        return (
            ended + added + self._event("response.content_part.added", **self._place(), part=shown)
        )

    def _end_item(self) -> bytes:
        if self._open is None:
            return b""
        kind, text, place = self._open, self._text, self._place()
        self._open = None
        item = self._items[-1] = {**_item(kind, text, "completed"), "id": self._items[-1]["id"]}
        more: dict[str, Any] = {"logprobs": []} if kind is Text else {}
        done = self._event(f"{GROWING[kind][1]}.done", **place, text=text, **more)
        done += self._event("response.content_part.done", **place, part=_content(kind, text))
        return done + self._event("response.output_item.done", output_index=self._last, item=item)

    def _called(self, call: ToolCall) -> bytes:
        item = _call_item(call)
        self._items.append(item)
        at = {"output_index": self._last}
        empty = {**item, "arguments": "", "status": "in_progress"}
        named, name = {"item_id": item["id"], **at}, "response.function_call_arguments"
        return b"".join(
            (
                self._event("response.output_item.added", **at, item=empty),
                self._event(f"{name}.delta", **named, delta=call.arguments),
                self._event(f"{name}.done", **named, arguments=call.arguments, name=call.name),
                self._event("response.output_item.done", **at, item=item),
            )
        )

    @property
    def _last(self) -> int:
        return len(self._items) - 1

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": self._last, "content_index": 0}

    def _event(self, name: str, /, **fields: Any) -> bytes:
        self._number += 1
        return event(name, {"type": name, "sequence_number": self._number, **fields})

    def _ended(self, choices: Sequence[Finished], items: list[Item]) -> dict[str, Any]:
        status = "incomplete" if choices[0].is_cut else "completed"
        response = self._response(status) | {"output": items, "usage": _usage(choices)}
        response["timings"] = timings(choices[0].generation)
        if choices[0].is_cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        return response

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._model,
            "output": [],
            "error": None,
            "incomplete_details": None,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "text": {"format": {"type": "text"}},
            "truncation": "disabled",
            "background": False,
            "metadata": {},
            "usage": None,
            **self._echoed,
        }


def _usage(choices: Sequence[Finished]) -> dict[str, Any]:
    used = usage(choices)
    return {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": used["prompt_tokens_details"],
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used["total_tokens"],
    }


def _items_of(finished: Finished) -> list[Item]:
    """The parts of an answer, those of a kind as one item; each call is its own."""
    items: list[Item] = []
    kept = [part for part in finished.parts if not isinstance(part, Scores)]
    for _, parts in groupby(kept, type):
        same = list(parts)
        first = same[0]
        if isinstance(first, ToolCall):
            items += [_call_item(call) for call in same if isinstance(call, ToolCall)]
        else:
            text = "".join(part.text for part in same if isinstance(part, Text | Reasoning))
            items.append(_item(type(first), text, "completed"))
    return items


def _item(kind: type[Part], text: str, status: str) -> Item:
    content = [_content(kind, text)]
    if kind is Reasoning:
        return {"id": _named("rs"), "type": "reasoning", "summary": [], "content": content}
    told = {"status": status, "role": "assistant", "content": content}
    return {"id": _named("msg"), "type": "message", **told}


def _content(kind: type[Part], text: str) -> dict[str, Any]:
    if kind is Reasoning:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call_item(call: ToolCall) -> Item:
    told = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
    return {"id": _named("fc"), "type": "function_call", "status": "completed", **told}


def _named(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"
