"""Directory: what the board says of stages and links, remembered briefly; finds routes."""

import asyncio
from collections.abc import Mapping

from client.route import HopSeconds, Need, Route, choose_route, hop_seconds_of
from swarm.board import Board
from swarm.errors import BadModel
from swarm.model import ModelSpec
from swarm.records import Advert, Capability

FRESH_SECONDS = 1.0  # adverts younger than this are taken as they are
LINKS_SECONDS = 30.0


class Directory:
    """Routes for one model, by the adverts on a board."""

    def __init__(self, board: Board, spec: ModelSpec) -> None:
        self._board, self._spec = board, spec
        self._clock = asyncio.get_running_loop().time
        self._adverts: Mapping[str, Advert] = {}
        self._read_at = self._links_at = float("-inf")
        self._hop_seconds: HopSeconds = hop_seconds_of({})
        self._reading = asyncio.Lock()  # many sessions that start together read once

    @property
    def model(self) -> tuple[str, int]:
        """Digest and number of layers of the model in question."""
        return self._spec.digest, self._spec.layers

    async def find(self, need: Need, *, fresh: bool) -> Route:
        """Return the cheapest route; `fresh` asks the network anew; raises NoRoute, BadModel."""
        asked_at = self._clock() if fresh else self._clock() - FRESH_SECONDS
        async with self._reading:
            if self._read_at < asked_at:
                await self._read()
        self._check_model()
        return choose_route(self._adverts.values(), need, self._hop_seconds)

    async def _read(self) -> None:
        now = self._clock()
        if self._links_at < now - LINKS_SECONDS:
            self._hop_seconds = hop_seconds_of(await self._board.read(Capability))
            self._links_at = now
        found = await self._board.read(Advert)
        self._adverts = {peer: advert for peer, advert in found.items() if _is_own(peer, advert)}
        self._read_at = now

    def _check_model(self) -> None:
        served = {advert.model for advert in self._adverts.values()}
        if served and self._spec.digest not in served:
            raise BadModel(
                f"The swarm serves other files than the copy of {self._spec.name} here.",
                "Name the very model that the host serves with --model.",
            )


def _is_own(peer: str, advert: Advert) -> bool:
    """Whether a peer speaks only of stages that it leads itself."""
    return all(stage.members and stage.members[0].peer == peer for stage in advert.stages)
