"""MessagesWriter: an answer in Anthropic's words, whole or as the events of a stream."""

import secrets
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from client.gateway.answering.figures import cached_tokens
from client.gateway.answering.parts import Finished, Part, Reasoning, Scores, Text, ToolCall
from client.gateway.answering.writer import EVENTS, comment, event
from client.gateway.api.chat_messages import call_turn
from client.gateway.http.api_error import ApiError, anthropic_body
from client.request import Request
from client.text.tokenizer import Tokenizer

PING = event("ping", {"type": "ping"})


class MessagesWriter:
    """One answer as Anthropic's clients read it: blocks of text, thoughts and calls."""

    media_type = EVENTS

    def __init__(self, model: str, request: Request, tokenizer: Tokenizer, *, thinks: bool) -> None:
        self._id = f"msg_{secrets.token_hex(12)}"
        self._model, self._request, self._tokenizer = model, request, tokenizer
        self._thinks = thinks
        self._block = -1  # the last one that was begun
        self._open: type[Part] | None = None  # what that one holds, as long as it may grow

    def begin(self) -> bytes:
        """An empty message, with the length of its prompt."""
        usage = {"input_tokens": len(self._request.ids), "output_tokens": 0}
        return event("message_start", {"type": "message_start", "message": self._message(usage)})

    def part(self, index: int, part: Part) -> bytes:
        """More of a block, or a new one."""
        match part:
            case Text():
                return self._grow(part, {"type": "text_delta", "text": part.text})
            case Reasoning() if self._thinks:
                return self._grow(part, {"type": "thinking_delta", "thinking": part.text})
            case ToolCall():
                return self._called(part)
        return b""

    def end(self, index: int, finished: Finished) -> bytes:
        """The last block ends."""
        return self._end_block()

    def close(self, choices: Sequence[Finished]) -> bytes:
        """Why it ended, and what it took."""
        ended = {"delta": self._stop(choices[0]), "usage": _usage(choices)}
        last = event("message_delta", {"type": "message_delta", **ended})
        return last + event("message_stop", {"type": "message_stop"})

    def fail(self, error: ApiError) -> bytes:
        """An error that Anthropic's clients raise."""
        return event("error", anthropic_body(error))

    def comment(self, text: str) -> bytes:
        """A line that clients pass over, and the event that Anthropic's own streams have."""
        return comment(text) + PING

    def whole(self, choices: Sequence[Finished]) -> dict[str, Any]:
        """The answer in one piece."""
        message = self._message(_usage(choices)) | self._stop(choices[0])
        return message | {"content": _blocks(choices[0], thinks=self._thinks)}

    def _message(self, usage: dict[str, int]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _grow(self, part: Text | Reasoning, delta: dict[str, Any]) -> bytes:
        begun = b"" if self._open is type(part) else self._begin_block(_block_of([part], ""))
        self._open = type(part)
        return begun + self._delta(delta)

    def _called(self, call: ToolCall) -> bytes:
        start = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        arguments = {"type": "input_json_delta", "partial_json": call.arguments}
        begun = self._begin_block(start)
        self._open = ToolCall
        return begun + self._delta(arguments) + self._end_block()

    def _begin_block(self, block: dict[str, Any]) -> bytes:
        ended = self._end_block()
        self._block += 1
        start = {"index": self._block, "content_block": block}
        return ended + event("content_block_start", {"type": "content_block_start", **start})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        grown = {"index": self._block, "delta": delta}
        return event("content_block_delta", {"type": "content_block_delta", **grown})

    def _end_block(self) -> bytes:
        if self._open is None:
            return b""
        signed = b""
        if self._open is Reasoning:
            signed = self._delta({"type": "signature_delta", "signature": ""})
        self._open = None
        ended = {"type": "content_block_stop", "index": self._block}
        return signed + event("content_block_stop", ended)

    def _stop(self, finished: Finished) -> dict[str, Any]:
        if finished.is_cut:
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if finished.calls:
            return {"stop_reason": "tool_use", "stop_sequence": None}
        word = self._stop_word(finished)
        return {"stop_reason": "stop_sequence" if word else "end_turn", "stop_sequence": word}

    def _stop_word(self, finished: Finished) -> str | None:
        """The text that ended the answer, if one did."""
        ids, sampling = finished.generation.token_ids, self._request.sampling
        if not sampling.stop or (ids and ids[-1] in sampling.stop_ids):
            return None
        written = self._tokenizer.text_of(ids)
        found = [(written.find(word), word) for word in sampling.stop if word in written]
        return min(found, default=(0, None))[1]


def _usage(choices: Sequence[Finished]) -> dict[str, int]:
    generation, cached = choices[0].generation, cached_tokens(choices)
    return {
        "input_tokens": generation.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": len(generation.token_ids),
    }


def _blocks(finished: Finished, *, thinks: bool) -> list[dict[str, Any]]:
    """The parts of an answer, those of a kind as one block; each call is its own."""
    kept = [part for part in finished.parts if not isinstance(part, Scores)]
    kept = [part for part in kept if thinks or not isinstance(part, Reasoning)]
    blocks: list[dict[str, Any]] = []
    for kind, parts in groupby(kept, type):
        if kind is ToolCall:
            blocks += [_use_of(call) for call in parts if isinstance(call, ToolCall)]
        else:
            same = [part for part in parts if isinstance(part, Text | Reasoning)]
            blocks.append(_block_of(same, "".join(part.text for part in same)))
    return blocks


def _block_of(parts: Sequence[Text | Reasoning], text: str) -> dict[str, Any]:
    if isinstance(parts[0], Text):
        return {"type": "text", "text": text}
    return {"type": "thinking", "thinking": text, "signature": ""}


def _use_of(call: ToolCall) -> dict[str, Any]:
    given = call_turn(call.id, call.name, call.arguments)["function"]["arguments"]
    shown = given if isinstance(given, dict) else {"arguments": given}
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": shown}
