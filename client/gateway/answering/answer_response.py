"""AnswerResponse: one request's answer over HTTP; whoever hangs up ends it at every stage."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from client.async_client import Client
from client.gateway.answering.choices import Choices, Event
from client.gateway.answering.figures import answer_headers, log_line, route_headers
from client.gateway.answering.metrics import CANCELLED, ERROR, OK, Metrics
from client.gateway.answering.parts import Finished, Part, PlainReader, Reader, Scores
from client.gateway.answering.writer import Writer
from client.gateway.http.admission import Admission
from client.gateway.http.api_error import SERVER_ERROR, ApiError, error_response, failure_of
from client.gateway.http.json_response import JsonResponse
from client.gateway.http.request_log import FACTS
from client.gateway.http.settings import GatewaySettings
from client.generation import Generation
from client.request import Request
from client.token_stream import Piece
from swarm.errors import SwarmError

STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Desk:
    """What every answer needs: whom to ask, how patiently, and how many at once."""

    client: Client
    settings: GatewaySettings
    admission: Admission
    metrics: Metrics


class AnswerResponse(Response):
    """Asks when it is sent, and writes what comes as the writer says."""

    def __init__(
        self,
        desk: Desk,
        requests: Sequence[Request],
        writer: Writer,
        *,
        is_streamed: bool,
        make_reader: Callable[[], Reader] = PlainReader,
    ) -> None:
        super().__init__()
        self._desk, self._requests, self._writer = desk, requests, writer
        self._is_streamed = is_streamed
        self._readers = [make_reader() for _ in requests]
        self._parts: list[list[Part]] = [[] for _ in requests]
        self._finished: dict[int, Finished] = {}
        self._is_begun = False
        self._outcome = CANCELLED  # until it has another one
        self._heard_at: dict[int, float] = {}  # of each choice, when its last piece came

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; ends quietly when the client hangs up."""
        began = perf_counter()
        try:
            await while_connected(receive, self._answer(scope, receive, send))
        finally:
            choices = self._choices()
            self._desk.metrics.ended(scope["path"], self._outcome, choices, began)
            if choices:
                scope["state"].setdefault(FACTS, []).append(log_line(choices))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._ask(send)
        except SwarmError as error:
            problem = failure_of(error)
        except ApiError as error:
            problem = error
        except Exception:  # an island: a client must not take a cut-off answer for a whole one
            logger.exception("an answer failed")
            problem = ApiError(500, "The gateway failed; its log says more.", kind=SERVER_ERROR)
        else:
            return
        self._outcome = ERROR
        self._desk.metrics.rejected(problem)
        if self._is_begun:
            await self._send(send, self._writer.fail(problem), is_last=True)
        else:
            await error_response(scope["path"], problem)(scope, receive, send)

    async def _ask(self, send: Send) -> None:
        """Wait for a place, ask and write; raises SwarmError, ApiError."""
        desk, count = self._desk, len(self._requests)
        async with desk.admission.places(count), Choices(desk.client, self._requests) as choices:
            if self._is_streamed:
                await self._stream(choices, send)
            while not choices.is_complete:
                for event in await choices.next():
                    self._take(event)
        self._outcome = OK  # after the last byte, servers say that the client has gone
        if self._is_streamed:
            await self._send(send, self._writer.close(self._choices()), is_last=True)
        else:
            await self._send_whole(send)

    async def _send_whole(self, send: Send) -> None:
        choices = self._choices()
        headers = answer_headers(choices[0].generation)
        response = JsonResponse(self._writer.whole(choices), headers=headers)
        await response({"type": "http"}, _nothing_more, send)

    async def _stream(self, choices: Choices, send: Send) -> None:
        """The head goes with the first token, so that an early failure has its own status."""
        settings, writer = self._desk.settings, self._writer
        events = await choices.next(settings.patience_seconds)
        headers = {**STREAM_HEADERS, **route_headers(choices.route)}
        await self._begin(send, headers)
        await self._send(send, writer.begin() + b"".join(map(self._take, events)))
        while not choices.is_complete:
            events = await choices.next(settings.comment_seconds)
            said = b"".join(map(self._take, events))
            silence = b"" if events else writer.comment(f"waiting for {choices.waits_for}")
            await self._send(send, said + silence)

    async def _begin(self, send: Send, headers: dict[str, str]) -> None:
        head = Response(media_type=self._writer.media_type, headers=headers)
        named = [pair for pair in head.raw_headers if pair[0] != b"content-length"]
        self._is_begun = True
        await send({"type": "http.response.start", "status": 200, "headers": named})

    async def _send(self, send: Send, body: bytes, *, is_last: bool = False) -> None:
        if body or is_last:
            await send({"type": "http.response.body", "body": body, "more_body": not is_last})

    def _take(self, event: Event) -> bytes:
        """Keep what came, and return how the writer says it."""
        index, what = event
        self._hear(index)
        parts = self._parts_of(index, what)
        self._parts[index] += parts
        write = partial(self._writer.part, index)
        said = b"".join(map(write, parts)) if self._is_streamed else b""
        if isinstance(what, Piece):
            return said
        finished = self._finished[index] = Finished(tuple(self._parts[index]), what)
        return said + self._writer.end(index, finished) if self._is_streamed else b""

    def _hear(self, index: int) -> None:
        now, before = perf_counter(), self._heard_at.get(index)
        self._heard_at[index] = now
        if before is not None:
            self._desk.metrics.between(now - before)

    def _parts_of(self, index: int, what: Piece | Generation) -> list[Part]:
        reader = self._readers[index]
        if not isinstance(what, Piece):
            return reader.finish()
        scores: list[Part] = [Scores(what.logprobs)] if what.logprobs else []
        return scores + (reader.feed(what.text) if what.text else [])

    def _choices(self) -> list[Finished]:
        return [self._finished[index] for index in sorted(self._finished)]


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Work as long as the client is there: hanging up cancels the work."""
    loop = asyncio.get_running_loop()
    working, watching = loop.create_task(work), loop.create_task(_until_gone(receive))
    both = {working, watching}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in both:
            task.cancel()
        await asyncio.wait(both)
    if not working.cancelled():
        working.result()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing_more() -> dict[str, Any]:
    return {"type": "http.disconnect"}
