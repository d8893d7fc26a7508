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

MOST_HEARD = 256  # pieces that wait to be written
Event = tuple[int, Piece | Generation]  # of which choice; the whole comes last


class Choices:
    """Generations under way; use it with `async with`: leaving it ends those that still run."""

    def __init__(self, client: Client, requests: Sequence[Request]) -> None:
        self._client, self._requests = client, requests
        self._streams: list[TokenStream] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._heard: asyncio.Queue[tuple[int, Piece | Generation | Exception]]
        self._heard = asyncio.Queue(MOST_HEARD)
        self._left = len(requests)

    async def __aenter__(self) -> Self:
        self._streams = self._client.ask_together(self._requests)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._hear(*each)) for each in enumerate(self._streams)]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(stream.aclose() for stream in self._streams))

    @property
    def is_complete(self) -> bool:
        """Whether every choice has come to its end."""
        return not self._left

    @property
    def route(self) -> tuple[StageAdvert, ...]:
        """The stages that serve the first choice."""
        return self._streams[0].route

    @property
    def waits_for(self) -> str:
        """What the first choice waits for."""
        return self._streams[0].waits_for

    async def next(self, seconds: float | None = None) -> list[Event]:
        """All that has come, nothing if that takes longer; raises SwarmError of any choice."""
        try:
            async with asyncio.timeout(seconds):
                events = [self._event(*await self._heard.get())]
        except TimeoutError:
            return []
        while not self._heard.empty():
            events.append(self._event(*self._heard.get_nowait()))
        return events

    def _event(self, index: int, what: Piece | Generation | Exception) -> Event:
        if isinstance(what, Exception):
            raise what
        self._left -= isinstance(what, Generation)
        return index, what

    async def _hear(self, index: int, stream: TokenStream) -> None:
        """Read a choice to its end, whatever that is."""
        try:
            async for piece in stream.pieces():
                await self._heard.put((index, piece))
            end: Generation | Exception = stream.generation
        except Exception as error:  # noqa: BLE001 - it is raised where the choices are awaited
            end = error
        await self._heard.put((index, end))
