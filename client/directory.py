"""Directory: what the board says of stages and links, remembered briefly; finds routes."""

import asyncio
import math
from collections import Counter
from collections.abc import Mapping

from client.route import HopTimes, Known, Need, Route, choose_route
from swarm.board import Board
from swarm.errors import BadInvite, BadModel
from swarm.model import ModelSpec
from swarm.records import Advert, Capability

FRESH_SECONDS = 1.0  # adverts younger than this are taken as they are
LINKS_SECONDS = 30.0
AT_ONCE_STAGES = 500  # a route over more of them is looked for beside the event loop
EMPTY_SECONDS = 20.0  # a swarm that has just begun shows its first peer sooner


class Directory:
    """Routes for one model, by the adverts on a board."""

    def __init__(
        self, board: Board, spec: ModelSpec, *, empty_seconds: float = EMPTY_SECONDS
    ) -> None:
        self._board, self._spec = board, spec
        self._clock = asyncio.get_running_loop().time
        self._empty_seconds = empty_seconds
        self._adverts: Mapping[str, Advert] = {}
        self._hops = HopTimes()
        self._read_at = self._links_at = -math.inf
        self._alone_since = math.inf  # no peer at all is on the board
        self._peers: set[str] = set()  # whose capabilities we have read
        self._own: Counter[str] = Counter()  # sessions of ours by leader
        self._reading = asyncio.Lock()  # many sessions that start together read once

    @property
    def spec(self) -> ModelSpec:
        """The model in question."""
        return self._spec

    async def find(self, need: Need, *, fresh: bool) -> Route:
        """Return the cheapest route; `fresh` asks the network anew.

        Raises NoRoute; BadModel or BadInvite if waiting would not help.
        """
        asked_at = self._clock() if fresh else self._clock() - FRESH_SECONDS
        async with self._reading:
            if self._read_at < asked_at:
                await self._read()
        self._check_swarm()
        return await self._choose(need)

    def enter(self, route: Route) -> None:
        """Count a session of ours on its route: adverts are seconds old."""
        self._own.update(route.leaders)

    def leave(self, route: Route) -> None:
        """The session is over, or goes elsewhere."""
        self._own.subtract(route.leaders)

    async def _choose(self, need: Need) -> Route:
        known = Known(self._hops, dict(self._own))
        adverts = tuple(self._adverts.values())
        if sum(len(advert.stages) for advert in adverts) > AT_ONCE_STAGES:
            return await asyncio.to_thread(choose_route, adverts, need, known)
        return choose_route(adverts, need, known)

    async def _read(self) -> None:
        now = self._clock()
        adverts = await self._board.read(Advert)
        is_old = self._links_at < now - LINKS_SECONDS or self._alone_since < math.inf
        if is_old or not adverts.keys() <= self._peers:  # a newcomer: learn where it is
            capabilities = await self._board.read(Capability)
            self._hops = HopTimes.of(capabilities)
            self._links_at, self._peers = now, {*capabilities, *adverts}
            self._alone_since = math.inf if capabilities else min(self._alone_since, now)
        self._adverts = {peer: advert for peer, advert in adverts.items() if _is_own(peer, advert)}
        self._read_at = now

    def _check_swarm(self) -> None:
        served = {advert.model for advert in self._adverts.values()}
        if served and self._spec.digest not in served:
            raise BadModel(
                f"The swarm serves other files than the copy of {self._spec.name} here.",
                "Name the very model that the host serves with --model.",
            )
        if not served and self._clock() - self._alone_since > self._empty_seconds:
            raise BadInvite(
                "The peers at the invite's addresses know nothing of its swarm.",
                "Ask for a fresh invite; the swarm is over, or the invite is of another one.",
            )


def _is_own(peer: str, advert: Advert) -> bool:
    """Whether a peer speaks only of stages that it leads itself."""
    return all(stage.members and stage.members[0].peer == peer for stage in advert.stages)
