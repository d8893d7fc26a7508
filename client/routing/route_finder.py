"""RouteFinder: what the board says of stages and links, remembered briefly; finds routes."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from random import Random

from client.routing.peer_scores import PeerScores, usual_layer_seconds
from client.routing.route import HopTimes, Known, Need, Place, Route, choose_route, place_of
from swarm.dht.board import Board
from swarm.errors import BadModel, PeerError
from swarm.invites import unknown_swarm
from swarm.model_spec import ModelSpec
from swarm.records import Advert, Capability, Manifest, StageAdvert

FRESH_SECONDS = 1.0  # adverts younger than this are taken as they are
LINKS_SECONDS = 30.0
PLACES_SECONDS = 3.0  # between reads of the plan for stages that are not in it
AT_ONCE_STAGES = 500  # a route over more of them is looked for beside the event loop
PLAN_SECONDS = 1.0  # to wait for the plan: routes are found without it, too
SPREAD = 0.25  # routes that cost up to so much more than the cheapest are taken as often
EMPTY_SECONDS = 20.0  # a swarm that has just begun shows its first peer sooner

Places = Callable[[], Awaitable[frozenset[Place]]]  # of the plan that counts; empty: not known


class RouteFinder:
    """Routes for one model, by the adverts on a board."""

    def __init__(
        self,
        board: Board,
        spec: ModelSpec,
        *,
        empty_seconds: float = EMPTY_SECONDS,
        chance: Random | None = None,
        places: Places | None = None,
        trusted_ends: frozenset[str] = frozenset(),
    ) -> None:
        self.trusted_ends = trusted_ends  # who may see text; empty: anybody
        self._board, self._spec = board, spec
        self._clock = asyncio.get_running_loop().time
        self._empty_seconds = empty_seconds
        self._adverts: Mapping[str, Advert] = {}
        self._hops = HopTimes()
        self._read_at = self._links_at = -math.inf
        self._alone_since = math.inf  # no peer at all is on the board
        self._peers: set[str] = set()  # whose capabilities we have read
        self._own: Counter[str] = Counter()  # sessions of ours by leader
        self._scores = PeerScores(self._clock)
        self._usual = 0.0  # seconds that a layer takes most peers, as they say
        self._has_served = False  # somebody served our model since we are here
        self._chance = chance or Random()
        self._places = places
        self._planned: frozenset[Place] = frozenset()
        self._offered_then: frozenset[Place] = frozenset()  # when the plan was read
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
        await self._check_swarm()
        cooling_down = self._scores.cooldowns.cooling_down
        return await self._choose(replace(need, avoid=need.avoid | cooling_down))

    def enter(self, route: Route) -> None:
        """Count a session of ours on its route: adverts are seconds old."""
        self._own.update(route.leaders)

    def leave(self, route: Route) -> None:
        """The session is over, or goes elsewhere."""
        self._own.subtract(route.leaders)

    def took(self, route: Route, hops: list[list[int]], seconds: float) -> None:
        """Learn from a token's times how fast the peers of its route are."""
        self._scores.took(route, hops, seconds, self._own)

    def did_well(self, route: Route) -> None:
        """Trust the peers of a route again, a little."""
        self._scores.cooldowns.forgive(route.members)

    def failed(self, suspects: Sequence[str], error: PeerError) -> None:
        """Let new sessions avoid these peers for a while, longer each time."""
        self._scores.failed(suspects, error)

    async def _choose(self, need: Need) -> Route:
        known = Known(self._hops, dict(self._own), self._step_seconds, self._planned)
        adverts = tuple(self._adverts.values())
        if sum(len(advert.stages) for advert in adverts) > AT_ONCE_STAGES:
            return await asyncio.to_thread(choose_route, adverts, need, known)
        return choose_route(adverts, need, known)

    def _step_seconds(self, stage: StageAdvert) -> float:
        """What a stage is believed to take, blurred: sessions spread over comparable routes."""
        usual = 0.0 if place_of(stage) in self._planned else self._usual
        seconds = self._scores.step_seconds(stage, usual)
        return seconds * self._chance.uniform(1.0, 1.0 + SPREAD)

    async def _read(self) -> None:
        now = self._clock()
        adverts = await self._board.read(Advert)
        is_old = self._links_at < now - LINKS_SECONDS or self._alone_since < math.inf
        offered = self._offered(adverts.values())
        if is_old or not adverts.keys() <= self._peers or self._has_changed(offered, now):
            capabilities, self._planned = await asyncio.gather(
                self._board.read(Capability), self._read_places(adverts.values())
            )
            self._hops = HopTimes.of(capabilities)
            self._links_at, self._peers = now, {*capabilities, *adverts}
            self._offered_then = offered
            self._alone_since = math.inf if capabilities else min(self._alone_since, now)
        self._adverts = {peer: advert for peer, advert in adverts.items() if _is_own(peer, advert)}
        self._usual = usual_layer_seconds(self._adverts.values(), self._spec.digest)
        self._read_at = now

    def _offered(self, adverts: Iterable[Advert]) -> frozenset[Place]:
        """The stages of our model on offer."""
        ours = (each for each in adverts if each.model == self._spec.digest)
        return frozenset(place_of(stage) for each in ours for stage in each.stages)

    def _has_changed(self, offered: frozenset[Place], now: float) -> bool:
        """Whether a stage is served that was not when we read the plan: it may be of a later one.

        A newcomer is always looked up; who changes his stages again and again is not, at once.
        """
        is_early = now - self._links_at < PLACES_SECONDS
        return not (is_early or offered <= self._offered_then | self._planned)

    async def _read_places(self, adverts: Iterable[Advert]) -> frozenset[Place]:
        """The stages of the plan that counts, if there is a choice and the plan is soon there."""
        if self._places is None or not self._has_choice(adverts):
            return frozenset()
        try:
            async with asyncio.timeout(PLAN_SECONDS):
                return await self._places()
        except TimeoutError:
            return self._planned

    def _has_choice(self, adverts: Iterable[Advert]) -> bool:
        """Whether more layers are on offer than one route needs."""
        stages = (s for each in adverts if each.model == self._spec.digest for s in each.stages)
        return sum(stage.end - stage.start for stage in stages) > self._spec.layers

    async def _check_swarm(self) -> None:
        """Say at once what no waiting mends; never again once our model has been served."""
        served = {advert.model for advert in self._adverts.values()}
        self._has_served |= self._spec.digest in served
        if self._has_served:
            return
        if served and not await self._is_promised():
            raise BadModel(
                f"The swarm serves other files than the copy of {self._spec.name} here.",
                "Name the very model that the host serves with --model.",
            )
        if not served and self._clock() - self._alone_since > self._empty_seconds:
            raise unknown_swarm()

    async def _is_promised(self) -> bool:
        """Whether the founder says that our model is served, whatever others serve meanwhile."""
        manifests = await self._board.read(Manifest)
        return any(each.digest == self._spec.digest for each in manifests.values())


def _is_own(peer: str, advert: Advert) -> bool:
    """Whether a peer speaks only of stages that it leads itself."""
    return all(stage.members and stage.members[0].peer == peer for stage in advert.stages)
