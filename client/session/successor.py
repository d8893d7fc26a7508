"""Successor: the next route of a session whose stage leaves, made ready while it still serves.

The old route goes on meanwhile. What the new one computes of the ids so far is kept by its stages,
so that the session changes over for the price of the few ids that came since.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from client.routing.route import Place, Route, place_of
from client.session.deadlines import Timeouts
from swarm.errors import NoRoute, SwarmError, Unreachable
from swarm.task_set import TaskSet

Find = Callable[[frozenset[str]], Awaitable[Route]]  # if it can be without these; SwarmError
WarmUp = Callable[[Route], Awaitable[None]]  # its stages compute the ids so far; SwarmError

logger = logging.getLogger(__name__)


class Successor:
    """At most one route that is made ready, for one session."""

    def __init__(self, find: Find, warm_up: WarmUp, timeouts: Timeouts) -> None:
        self._find, self._warm_up, self._timeouts = find, warm_up, timeouts
        self._route: Route | None = None
        self._tasks = TaskSet()
        self._task: asyncio.Task[None] | None = None

    def prefer(self, route: Route) -> None:
        """Let this one be the next."""
        self._route = route

    def prepare(self, leaving: frozenset[Place], when_ready: Callable[[], None]) -> None:
        """Find a route without these stages and warm it up, then say so, unless that is on."""
        if self._task is None:
            work = self._prepared(leaving, when_ready)
            self._task = self._tasks.create("making another route ready", work)

    def take(self) -> Route | None:
        """The route that was found, ready or not; what still goes on for it ends."""
        route, self._route = self._route, None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        return route

    async def close(self) -> None:
        """End what goes on."""
        await self._tasks.close()

    async def _prepared(self, leaving: frozenset[Place], when_ready: Callable[[], None]) -> None:
        route = self._route = await self._route_without(leaving)
        try:
            await self._warm_up(route)
        except SwarmError as error:
            logger.info("the next route was not warmed up: %s", error)
        else:
            logger.debug("the next route is warm")
        when_ready()

    async def _route_without(self, leaving: frozenset[Place]) -> Route:
        """Wait for a route; whoever takes this one, or loses the old one, ends the wait."""
        peers, pause = frozenset(peer for peer, _, _ in leaving), self._timeouts.pause_seconds
        while True:
            try:
                route = await self._find(peers)
                if leaving.isdisjoint(map(place_of, route.stages)):
                    return route
            except (NoRoute, Unreachable) as error:
                logger.debug("no other route yet: %s", error)
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, self._timeouts.longest_pause_seconds)
