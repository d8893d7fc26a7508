"""The herald: keeps this node's own records on the board - capability, advert, manifest."""

import asyncio
import time
from dataclasses import dataclass, field, replace

from node.control.membership import HEARTBEAT_SECONDS, Neighbourhood
from node.control.plan_store import PlanShelf
from node.serving.stage_server import Server
from swarm.dht.board import Board
from swarm.hardware import Link
from swarm.records import Advert, Capability, Manifest
from swarm.trust.network_clock import CLOCK

ADVERT_SECONDS = Advert.TTL_SECONDS / 3
RETRY_SECONDS = 1.0  # after an advert that nobody took
MANIFEST_SECONDS = Manifest.TTL_SECONDS / 3


@dataclass(slots=True)
class Spoken:
    """What we said last, and when on the monotonic clock."""

    capability_at: float = 0.0
    advert_at: float = 0.0
    manifest_at: float = 0.0
    inventory: str = ""  # as the manifest said
    stages: object = field(default_factory=list)  # None: the last advert was not taken
    joined: bool = False


class Herald:
    """Publishes what is due, and what has changed, and the farewell."""

    def __init__(
        self,
        board: Board,
        neighbourhood: Neighbourhood,
        shelf: PlanShelf,
        server: Server,
        capability: Capability,
    ) -> None:
        self._board = board
        self._neighbourhood = neighbourhood
        self._shelf = shelf
        self._server = server
        self._spoken = Spoken()
        self._joined_at = time.monotonic() - (CLOCK.now() - capability.since)
        self.capability = capability
        neighbourhood.note_own(capability)

    def note_links(self, links: list[Link]) -> None:
        """Our links were measured: say so soon."""
        self.capability = replace(self.capability, links=links)
        self.hurry()

    def hurry(self) -> None:
        """Publish the capability at the next chance."""
        self._spoken.capability_at = 0.0

    async def publish_due(self, manifest: Manifest | None) -> None:
        """Publish what is due now; `manifest` is the founder's; raises SwarmError."""
        now, spoken = time.monotonic(), self._spoken
        if now - spoken.capability_at > HEARTBEAT_SECONDS:
            spoken.capability_at = now
            since = CLOCK.now() - (now - self._joined_at)  # also after the clock was set
            self.capability = replace(self.capability, term=self._shelf.term, since=since)
            self._neighbourhood.note_own(self.capability)
            await self._board.publish(self.capability)
            await self._tell_that_we_joined()
        await self._publish_advert(now)
        if manifest and (
            now - spoken.manifest_at > MANIFEST_SECONDS or manifest.inventory != spoken.inventory
        ):
            await self._board.publish(manifest)
            spoken.manifest_at, spoken.inventory = now, manifest.inventory

    async def say_farewell(self) -> None:
        """Withdraw every record of ours and tell the others; raises SwarmError."""
        gone = Advert(self.capability.model, [], self._shelf.term, leaving=True)
        await asyncio.gather(
            self._board.publish(gone),
            self._board.publish(replace(self.capability, leaving=True)),
        )
        await self._neighbourhood.tell_news(self._neighbourhood.capabilities)

    async def _publish_advert(self, now: float) -> None:
        stages = self._server.adverts()
        shape = [(stage.start, stage.end, stage.members) for stage in stages]
        pause = RETRY_SECONDS if self._spoken.stages is None else 0.0
        changed = shape != self._spoken.stages and now - self._spoken.advert_at >= pause
        if changed or (stages and now - self._spoken.advert_at > ADVERT_SECONDS):
            self._spoken.advert_at = now
            self._spoken.stages = None  # until somebody has taken it
            await self._board.publish(Advert(self.capability.model, stages, self._shelf.term))
            self._spoken.stages = shape

    async def _tell_that_we_joined(self) -> None:
        others = list(self._neighbourhood.capabilities)
        if not self._spoken.joined and len(others) > 1:
            self._spoken.joined = True
            await self._neighbourhood.tell_news(others)
