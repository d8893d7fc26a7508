"""`/v1/chat/completions`: what is asked, and how it is answered."""

import secrets
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from fastapi import APIRouter
from starlette.responses import Response

from client.gateway.answering.answer_response import AnswerResponse, Desk
from client.gateway.answering.figures import timings, usage
from client.gateway.answering.parts import Finished, Part, Reasoning, Scores, Text, ToolCall
from client.gateway.answering.preparing import Wish, model_named, requests_for
from client.gateway.answering.readers import reader_for
from client.gateway.answering.writer import DONE, EVENTS, comment, data
from client.gateway.api.chat_messages import ChatMessages
from client.gateway.api.checked_body import CheckedBody, SamplingBody
from client.gateway.api.logprobs import chat_logprobs
from client.gateway.api.tools import ToolBody
from client.gateway.http.api_error import ApiError, openai_body
from client.text.tokenizer import Messages, Tokenizer


class StreamOptions(CheckedBody):
    """What a stream tells besides the answer."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})
    include_usage: bool = False


class ChatRequest(SamplingBody, ChatMessages, ToolBody):
    """A chat to go on with."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            *("metadata", "prediction", "prompt_cache_key", "user"),
            *("prompt_cache_retention", "reasoning", "reasoning_effort", "safety_identifier"),
            *("service_tier", "store", "verbosity"),
        }
    )
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0

    def wish(self) -> Wish:
        """The same as a wish; raises ApiError on what is not supported yet."""
        turns: Messages = self.turns()
        options = self.options()
        if self.logprobs or self.top_logprobs:
            options |= {"logprobs": self.logprobs, "top_logprobs": self.top_logprobs}
        most = self.max_completion_tokens or self.max_tokens
        return Wish(None, turns, options, most, self.n, self.told_tools(), self.calls())


class ChatWriter:
    """One answer as OpenAI's clients read it."""

    media_type = EVENTS

    def __init__(
        self, model: str, choices: int, tokenizer: Tokenizer, *, tells_usage: bool
    ) -> None:
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._model, self._choices, self._tells_usage = model, choices, tells_usage
        self._tokenizer = tokenizer
        self._created = int(time.time())
        self._calls = [0] * choices  # so far

    def begin(self) -> bytes:
        """The role of whoever speaks."""
        start = {"role": "assistant", "content": ""}
        return b"".join(self._delta(index, start) for index in range(self._choices))

    def part(self, index: int, part: Part) -> bytes:
        """A piece of text or of thought, or a whole call."""
        if isinstance(part, Text):
            return self._delta(index, {"content": part.text})
        if isinstance(part, Reasoning):
            return self._delta(index, {"reasoning_content": part.text})
        if isinstance(part, Scores):
            return self._delta(index, {}, scores=chat_logprobs(part.tokens, self._tokenizer))
        place = {"index": self._calls[index]}
        self._calls[index] += 1
        return self._delta(index, {"tool_calls": [place | call_json(part)]})

    def end(self, index: int, finished: Finished) -> bytes:
        """Why a choice ended, and what it took."""
        extra = {"timings": timings(finished.generation)}
        return self._delta(index, {}, reason=finish_reason(finished), extra=extra)

    def close(self, choices: Sequence[Finished]) -> bytes:
        """The usage, if it was asked for: some clients trip over chunks without a choice."""
        told = data(self._chunk([], {"usage": usage(choices)})) if self._tells_usage else b""
        return told + DONE

    def fail(self, error: ApiError) -> bytes:
        """An error that every client of OpenAI's raises."""
        return data(openai_body(error))

    def comment(self, text: str) -> bytes:
        """A line that clients pass over."""
        return comment(text)

    def whole(self, choices: Sequence[Finished]) -> dict[str, Any]:
        """The answer in one piece."""
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [self._choice(index, each) for index, each in enumerate(choices)],
            "usage": usage(choices),
            "timings": timings(choices[0].generation),
        }

    def _delta(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        reason: str | None = None,
        scores: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": scores, "finish_reason": reason}
        return data(self._chunk([choice], extra or {}))

    def _choice(self, index: int, finished: Finished) -> dict[str, Any]:
        calls = [call_json(call) for call in finished.calls]
        content = None if calls and not finished.text else finished.text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        message |= {"reasoning_content": finished.reasoning} if finished.reasoning else {}
        message |= {"tool_calls": calls} if calls else {}
        told = finished.generation.logprobs
        scores = chat_logprobs(told, self._tokenizer) if told else None
        reason = finish_reason(finished)
        return {"index": index, "message": message, "logprobs": scores, "finish_reason": reason}

    def _chunk(self, choices: list[dict[str, Any]], extra: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
            **extra,
        }


def call_json(call: ToolCall) -> dict[str, Any]:
    """A call of a tool, its arguments as text: some clients cannot read an object."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def finish_reason(finished: Finished) -> str:
    """Why an answer ended; with calls of tools it never is a mere stop."""
    if finished.calls and not finished.is_cut:
        return "tool_calls"
    return finished.generation.finish_reason


def chat_routes(desk: Desk) -> APIRouter:
    """The routes of this file."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def create(body: ChatRequest) -> Response:
        model = await model_named(desk, body.model)
        wish = body.wish()
        requests = await requests_for(desk, wish)
        reader = await reader_for(desk, wish, requests[0])
        tokenizer = (await desk.client.model()).tokenizer
        tells_usage = body.stream_options.include_usage
        writer = ChatWriter(model, body.n, tokenizer, tells_usage=tells_usage)
        return AnswerResponse(desk, requests, writer, is_streamed=body.stream, make_reader=reader)

    return router
