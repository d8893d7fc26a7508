"""Choices: the generations of one request side by side, read as they come."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from client.async_client import Client
from client.generation import Generation
from client.request import Request
from client.token_stream import Piece, TokenStream
from swarm.records import StageAdvert

Event = tuple[int, Piece | Generation]  # of which choice; the whole comes last


class Choices:
    """Generations under way; use it with `async with`: leaving it ends those that still run."""

    def __init__(self, client: Client, requests: Sequence[Request]) -> None:
        self._client, self._requests = client, requests
        self._streams: list[TokenStream] = []
        self._reading: dict[asyncio.Task[Piece | None], int] = {}

    async def __aenter__(self) -> Self:
        self._streams = self._client.ask_together(self._requests)
        for index in range(len(self._streams)):
            self._read(index)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
        await asyncio.gather(*(stream.aclose() for stream in self._streams))

    @property
    def is_complete(self) -> bool:
        """Whether every choice has come to its end."""
        return not self._reading

    @property
    def route(self) -> tuple[StageAdvert, ...]:
        """The stages that serve the first choice."""
        return self._streams[0].route

    @property
    def waits_for(self) -> str:
        """What the first choice waits for."""
        return self._streams[0].waits_for

    async def next(self, seconds: float | None = None) -> list[Event]:
        """What comes next, nothing if that takes longer; raises SwarmError of any choice."""
        done, _ = await asyncio.wait(
            self._reading, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        return [self._event(task) for task in done]

    def _event(self, task: "asyncio.Task[Piece | None]") -> Event:
        index = self._reading.pop(task)
        piece = task.result()
        if piece is None:
            return index, self._streams[index].generation
        self._read(index)
        return index, piece

    def _read(self, index: int) -> None:
        reading = asyncio.get_running_loop().create_task(_next_piece(self._streams[index]))
        self._reading[reading] = index


async def _next_piece(stream: TokenStream) -> Piece | None:
    try:
        return await anext(stream.pieces())
    except StopAsyncIteration:
        return None
