"""Admission: how many generations run at once, and how many wait in line for their turn."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from client.gateway.http.api_error import busy
from client.gateway.http.settings import GatewaySettings


class Admission:
    """Places for generations, given out in the order of asking."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._most_running, self._most_waiting = settings.most_running, settings.most_waiting
        self._queue_seconds = settings.queue_seconds
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.running = 0  # generations
        self.waiting = 0

    @asynccontextmanager
    async def places(self, count: int) -> AsyncIterator[None]:
        """Hold places for so many generations; raises ApiError if the line is too long."""
        await self._enter(count)
        try:
            yield
        finally:
            self.running -= count
            self._admit()

    async def _enter(self, count: int) -> None:
        if not self._line and self.running + count <= self._most_running:
            self.running += count
            return
        if self.waiting + count > self._most_waiting or count > self._most_running:
            raise busy(f"{self.waiting} generations are in line here already.")
        await self._wait(count)

    async def _wait(self, count: int) -> None:
        """Wait for the turn; whoever gives up, or is let in too late, leaves no place taken."""
        turn = (count, asyncio.get_running_loop().create_future())
        self._line.append(turn)
        self.waiting += count
        is_in = False
        try:
            async with asyncio.timeout(self._queue_seconds):
                await turn[1]
            is_in = True
        except TimeoutError as error:
            raise busy(f"No place was free for {self._queue_seconds:g} s.") from error
        finally:
            if not is_in:
                self._leave(turn)

    def _leave(self, turn: tuple[int, "asyncio.Future[None]"]) -> None:
        count, admitted = turn
        if turn in self._line:
            self._line.remove(turn)
            self.waiting -= count
        elif not admitted.cancelled():
            self.running -= count
        self._admit()

    def _admit(self) -> None:
        """Let in whoever is next, as long as there are places."""
        while self._line and self.running + self._line[0][0] <= self._most_running:
            count, turn = self._line.popleft()
            self.waiting -= count
            if not turn.cancelled():
                self.running += count
                turn.set_result(None)
