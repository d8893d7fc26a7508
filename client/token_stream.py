"""TokenStream: one generation as it comes; iterate over its pieces, then read `generation`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Self

from client.generation import Generation, Stopwatch
from client.request import Request
from client.session.inference_session import Session
from client.session.transcript import Transcript
from client.text.detokenizer import Detokenizer
from client.text.tokenizer import Tokenizer
from swarm.errors import LocalProtocolError
from swarm.records import StageAdvert
from swarm.wire.token_logprobs import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Piece:
    """Text as it comes, and the log-probabilities of the tokens that came since the piece before.

    Text may be held back (half a character, or what may become a stop string), so that a token
    comes with the first piece behind it, wherever its own text is. The last piece may have no text.
    """

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


class StreamState:
    """What a session's task fills and the reader of its tokens empties."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self.generation: Generation | None = None
        self.session: Session | None = None
        self.has_begun = asyncio.Event()  # the first token is here, or none will come
        self.pieces: asyncio.Queue[Piece | None] = asyncio.Queue()  # None ends them
        self._watch = Stopwatch(perf_counter())
        self._detokenizer = Detokenizer(tokenizer.text_of, request.sampling.stop, request.ids)
        self._taken = self._told = 0  # tokens read, and those whose log-probabilities are given
        self._stop_ids = frozenset(request.sampling.stop_ids)

    def close(self) -> None:
        """Nothing comes any more, whether anything came or not."""
        self.has_begun.set()
        self.pieces.put_nowait(None)

    async def follow(self, session: Session) -> None:
        """Read a session to its end and keep what came of it; raises SwarmError.

        Waits for nobody but the session: however slowly the pieces are read, it goes on.
        """
        self.session = session
        async with aclosing(session.tokens()) as tokens:
            async for token in tokens:
                self._take(token, session.transcript)
                if self._detokenizer.stopped:
                    session.stop()
        self._give(self._detokenizer.finish(), session.transcript, is_last=True)
        self.generation = self._generation_of(session)

    def _take(self, token: int, transcript: Transcript) -> None:
        """The id that ends an answer is no part of its text, special token or not."""
        self._watch.token(perf_counter())
        self._taken += 1
        self.has_begun.set()
        if token not in self._stop_ids:
            self._give(self._detokenizer.push([token]), transcript)

    def _give(self, text: str, transcript: Transcript, *, is_last: bool = False) -> None:
        logprobs = tuple(transcript.logprobs[self._told : self._taken])
        if text or (logprobs and is_last):
            self._told += len(logprobs)
            self.pieces.put_nowait(Piece(text, logprobs))

    def _generation_of(self, session: Session) -> Generation:
        transcript, route = session.transcript, session.last_route
        return Generation(
            text=self._detokenizer.text,
            token_ids=tuple(transcript.generated),
            finish_reason=transcript.finish,
            ttft_seconds=self._watch.ttft_seconds,
            tokens_per_second=self._watch.tokens_per_second,
            route=route.stages if route else (),
            timings=session.stage_times.timings(),
            replays=session.replays,
            drafted=session.drafted,
            accepted=session.accepted,
            prompt_tokens=len(transcript.prompt),
            cached_tokens=session.cached_tokens,
            logprobs=tuple(transcript.logprobs),
        )


class TokenStream(AsyncIterator[str]):
    """Pieces of text as they come; dropping or closing it frees the session at every stage."""

    def __init__(self, state: StreamState, task: asyncio.Task[None]) -> None:
        self._state = state
        self._pieces = _pieces(state, task)
        self._task = task

    async def __anext__(self) -> str:
        while not (piece := await anext(self._pieces)).text:
            pass  # log-probabilities alone
        return piece.text

    def pieces(self) -> AsyncIterator[Piece]:
        """The same pieces with the log-probabilities of their tokens, in place of plain text."""
        return self._pieces

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def cancel(self) -> None:
        """Stop generating, and wait for nobody."""
        end(self._task)

    async def aclose(self) -> None:
        """Stop generating, and wait until the stages are told."""
        self.cancel()
        await asyncio.wait([self._task])
        await self._pieces.aclose()

    async def finish(self) -> Generation:
        """Read to the end and return the whole."""
        async for _ in self:
            pass
        return self.generation

    @property
    def route(self) -> tuple[StageAdvert, ...]:
        """The stages that the session has chosen last; none before it has found any."""
        session = self._state.session
        return session.last_route.stages if session and session.last_route else ()

    @property
    def waits_for(self) -> str:
        """What the session waits for, in words for who waits with it."""
        return self._state.session.waits_for if self._state.session else "a start"

    @property
    def generation(self) -> Generation:
        """The whole, once the last piece has been read."""
        if self._state.generation is None:
            raise LocalProtocolError("The generation is not complete.", "Read all pieces first.")
        return self._state.generation


async def _pieces(state: StreamState, task: asyncio.Task[None]) -> AsyncGenerator[Piece, None]:
    """Knows nothing of the TokenStream, so that a TokenStream that is dropped ends it."""
    try:
        while (piece := await state.pieces.get()) is not None:
            yield piece
        await task
    finally:
        end(task)


def end(task: "asyncio.Task[None]") -> None:
    """Cancel a session's task once: a second time would interrupt its goodbye to the stages."""
    if not task.cancelling():
        task.cancel()
