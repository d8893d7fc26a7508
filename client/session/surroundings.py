"""Surroundings of a session: where it finds its way, and who is told what it does."""

from collections.abc import Sequence
from typing import Protocol

from client.routing.route import Need, Route
from swarm.errors import PeerError
from swarm.model_spec import ModelSpec


class Routes(Protocol):
    """Where a session finds its way: the board, or a list in tests."""

    @property
    def spec(self) -> ModelSpec:
        """The model in question."""

    async def find(self, need: Need, *, fresh: bool) -> Route:
        """Return the cheapest route; `fresh` asks the network anew; raises NoRoute."""

    def enter(self, route: Route) -> None:
        """A session goes over this route from now on."""

    def leave(self, route: Route) -> None:
        """It no longer does."""

    def took(self, route: Route, hops: list[list[int]], seconds: float) -> None:
        """A token came so long after the one before, with the time that every hop took."""

    def did_well(self, route: Route) -> None:
        """A session ended over this route as it should."""

    def failed(self, suspects: Sequence[str], error: PeerError) -> None:
        """One of these peers failed a session, as it saw itself."""


class Listener(Protocol):
    """Who is told what a session does: new ids, and how long each hop took."""

    def take(self, token: int) -> bool:
        """Take one new id; True ends the generation there (a stop string is complete)."""

    def use(self, route: Route) -> None:
        """The session goes over this route now."""

    def time(self, route: Route, hops: list[list[int]]) -> None:
        """A token came with the time that every hop took."""
