"""`/v1/completions`: texts or ids to go on with."""

import secrets
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from fastapi import APIRouter
from starlette.responses import Response

from client.gateway.answering.answer_response import AnswerResponse, Desk
from client.gateway.answering.figures import timings, usage
from client.gateway.answering.parts import Finished, Part, Scores, Text
from client.gateway.answering.preparing import Wish, model_named, requests_for
from client.gateway.answering.writer import DONE, EVENTS, comment, data
from client.gateway.api.chat_completions import StreamOptions
from client.gateway.api.checked_body import SamplingBody, refuse_all, unsupported
from client.gateway.api.logprobs import completion_logprobs
from client.gateway.http.api_error import ApiError, bad_request, openai_body
from client.request import Request
from client.text.tokenizer import Tokenizer
from swarm.wire.token_logprobs import TokenLogprobs

DEFAULT_TOKENS = 16  # OpenAI's
MOST_PROMPTS = 32
Prompt = str | list[int]


class CompletionRequest(SamplingBody):
    """Prompts to go on with."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"metadata", "store", "user"})
    model: str | None = None
    prompt: str | list[str] | list[int] | list[list[int]]
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int = DEFAULT_TOKENS
    n: int = 1
    best_of: int = 1
    echo: bool = False
    suffix: str = ""
    logprobs: int | None = None

    def prompts(self) -> list[Prompt]:
        """One prompt or several, each of its own; raises ApiError."""
        given = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        if not given or len(given) * self.n > MOST_PROMPTS:
            message = f"There are {len(given)} prompts, {self.n} times each;"
            raise bad_request(f"{message} send 1 to {MOST_PROMPTS} in all.", "prompt")
        return list(given)  # type: ignore[arg-type]

    def wishes(self) -> list[Wish]:
        """A wish for each prompt; raises ApiError on what is not supported."""
        refuse_all(self, suffix="", echo=False)
        if self.best_of != 1:
            raise unsupported("best_of")
        options = self.options()
        if self.logprobs is not None:
            options |= {"logprobs": True, "top_logprobs": self.logprobs}
        return [Wish(each, None, options, self.max_tokens, self.n) for each in self.prompts()]


class CompletionWriter:
    """One answer as clients of OpenAI's older API read it."""

    media_type = EVENTS

    def __init__(self, model: str, count: int, tokenizer: Tokenizer, *, tells_usage: bool) -> None:
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._model, self._tells_usage = model, tells_usage
        self._count = count  # choices of each prompt
        self._created = int(time.time())
        self._tokenizer = tokenizer
        self._written: Counter[int] = Counter()  # characters of each choice so far

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def part(self, index: int, part: Part) -> bytes:
        """A piece of text, or what its tokens' likelihoods are."""
        if isinstance(part, Scores):
            scores = self._scores(part.tokens, self._written[index])
            return self._piece(_choice(index, "", scores=scores))
        if not isinstance(part, Text):
            return b""
        self._written[index] += len(part.text)
        return self._piece(_choice(index, part.text))

    def end(self, index: int, finished: Finished) -> bytes:
        """Why a choice ended, and what it took."""
        generation = finished.generation
        end = _choice(index, "", generation.finish_reason)
        return self._piece(end, {"timings": timings(generation)})

    def close(self, choices: Sequence[Finished]) -> bytes:
        """The usage, if it was asked for."""
        if not self._tells_usage:
            return DONE
        return data(self._body([], {"usage": self._usage(choices)})) + DONE

    def fail(self, error: ApiError) -> bytes:
        """An error that every client of OpenAI's raises."""
        return data(openai_body(error))

    def comment(self, text: str) -> bytes:
        """A line that clients pass over."""
        return comment(text)

    def whole(self, choices: Sequence[Finished]) -> dict[str, Any]:
        """The answer in one piece."""
        shown = [
            _choice(
                index,
                each.text,
                each.generation.finish_reason,
                self._scores(each.generation.logprobs) if each.generation.logprobs else None,
            )
            for index, each in enumerate(choices)
        ]
        extra = {"usage": self._usage(choices), "timings": timings(choices[0].generation)}
        return self._body(shown, extra)

    def _usage(self, choices: Sequence[Finished]) -> dict[str, Any]:
        """All prompts together; the choices of one share it."""
        each = [usage(choices[at : at + self._count]) for at in range(0, len(choices), self._count)]
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        cached = sum(one["prompt_tokens_details"]["cached_tokens"] for one in each)
        summed = {name: sum(one[name] for one in each) for name in names}
        return {**summed, "prompt_tokens_details": {"cached_tokens": cached}}

    def _scores(self, tokens: Sequence[TokenLogprobs], offset: int = 0) -> dict[str, Any]:
        return completion_logprobs(tokens, self._tokenizer, offset)

    def _piece(self, choice: dict[str, Any], extra: dict[str, Any] | None = None) -> bytes:
        return data(self._body([choice], extra or {}))

    def _body(self, choices: list[dict[str, Any]], extra: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
            **extra,
        }


def _choice(
    index: int, text: str, reason: str | None = None, scores: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": scores, "finish_reason": reason}


def completion_routes(desk: Desk) -> APIRouter:
    """The routes of this file."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def create(body: CompletionRequest) -> Response:
        model = await model_named(desk, body.model)
        requests: list[Request] = []
        for wish in body.wishes():
            requests += await requests_for(desk, wish)
        tokenizer = (await desk.client.model()).tokenizer
        tells_usage = body.stream_options.include_usage
        writer = CompletionWriter(model, body.n, tokenizer, tells_usage=tells_usage)
        return AnswerResponse(desk, requests, writer, is_streamed=body.stream)

    return router
