"""Announcer: keeps this node's own records on the board - capability, advert, manifest."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from node.control.membership import HEARTBEAT_SECONDS, Membership
from node.control.plan_store import PlanStore
from node.network.reachability import ReachState
from swarm.dht.board import Board
from swarm.hardware import RELAYED, Link, assumed_relayed
from swarm.records import Advert, Capability, Manifest, StageAdvert, Trouble
from swarm.trust.network_clock import CLOCK

ADVERT_SECONDS = Advert.TTL_SECONDS / 3
ADDRESSES_CAP, LINKS_CAP, TROUBLES_CAP = 8, 8, 4
RETRY_SECONDS = 1.0  # after an advert that nobody took
MANIFEST_SECONDS = Manifest.TTL_SECONDS / 3


class Server(Protocol):
    """What serves stages: the node's stage server, or what stands for it in a simulated swarm."""

    def adverts(self) -> list[StageAdvert]:
        """What it has loaded and leads now."""


@dataclass(slots=True)
class LastPublished:
    """What we said last, and when on the monotonic clock."""

    capability_at: float = 0.0
    advert_at: float = 0.0
    manifest_at: float = 0.0
    inventory: str = ""  # as the manifest said
    stages: object = field(default_factory=list)  # None: the last advert was not taken
    joined: bool = False


class Announcer:
    """Publishes what is due, and what has changed, and the farewell."""

    def __init__(
        self,
        board: Board,
        membership: Membership,
        plan_store: PlanStore,
        server: Server,
        capability: Capability,
        *,
        troubles: Callable[[], list[Trouble]] = list,
    ) -> None:
        """`troubles` says what parts of the plan our devices fail to take up."""
        self._board = board
        self._membership = membership
        self._plan_store = plan_store
        self._server = server
        self._troubles = troubles
        self._last = LastPublished()
        self._joined_at = time.monotonic() - (CLOCK.now() - capability.since)
        self._kinds: Mapping[str, str] = {}
        self._measured: dict[str, Link] = {}
        self._addresses = tuple(capability.addresses)
        self._devices = capability.devices
        self.capability = capability
        membership.note_own(capability)

    def note_pause(self, *, is_paused: bool) -> None:
        """The owner takes the devices back, or gives them again: say so soon, and tell others."""
        devices = [] if is_paused else self._devices
        self.capability = replace(self.capability, devices=devices, paused=is_paused)
        self._last.joined = False
        self.publish_soon()

    def note_links(self, links: Sequence[Link]) -> None:
        """Our links were measured: say so soon."""
        self._measured = {link.peer: link for link in links}
        self._say_links()

    def note_kinds(self, kinds: Mapping[str, str]) -> None:
        """It changed how some links go: say so soon."""
        self._kinds = kinds
        self._say_links()

    def _say_links(self) -> None:
        """What was measured; and relayed links that were not, for a relay may let no probe pass."""
        relayed = (peer for peer, kind in self._kinds.items() if kind == RELAYED)
        assumed = {peer: assumed_relayed(peer) for peer in relayed}
        known = [
            replace(link, kind=self._kinds.get(link.peer, link.kind))
            for link in (assumed | self._measured).values()
        ]
        links = sorted(known, key=lambda link: link.peer not in self._measured)[:LINKS_CAP]
        if links != self.capability.links:
            self.capability = replace(self.capability, links=links)
            self.publish_soon()

    def note_reach(self, state: ReachState) -> None:
        """It is known how others reach us: say so soon, with the addresses that lead to us."""
        found = state.verdict.at if state.verdict else ()
        direct = () if state.is_private else dict.fromkeys((*found, *self._addresses))
        self.capability = replace(
            self.capability,
            reachable=state.is_reachable,
            relays=list(state.relays),
            local=list(state.local),
            home=state.home,
            addresses=list(direct)[:ADDRESSES_CAP],
        )
        self.publish_soon()

    def publish_soon(self) -> None:
        """Publish the capability at the next chance."""
        self._last.capability_at = 0.0

    async def publish_due(self, manifest: Manifest | None) -> None:
        """Publish what is due now; `manifest` is the founder's; raises SwarmError."""
        now, last = time.monotonic(), self._last
        if now - last.capability_at > HEARTBEAT_SECONDS:
            last.capability_at = now
            since = CLOCK.now() - (now - self._joined_at)  # also after the clock was set
            self.capability = replace(self.capability, term=self._plan_store.term, since=since)
            self._membership.note_own(self.capability)
            await self._board.publish(self.capability)
            await self._announce_joining()
        await self._publish_advert(now)
        if manifest and (
            now - last.manifest_at > MANIFEST_SECONDS or manifest.inventory != last.inventory
        ):
            await self._board.publish(manifest)
            last.manifest_at, last.inventory = now, manifest.inventory

    async def withdraw(self) -> None:
        """Withdraw every record of ours and tell the others; raises SwarmError."""
        gone = Advert(self.capability.model, [], self._plan_store.term, leaving=True)
        await asyncio.gather(
            self._board.publish(gone),
            self._board.publish(replace(self.capability, leaving=True)),
        )
        await self._membership.tell_some()

    async def _publish_advert(self, now: float) -> None:
        stages, troubles = self._server.adverts(), self._troubles()[:TROUBLES_CAP]
        told = ((each.start, each.end, each.members, each.step_seconds) for each in stages)
        shape = [*told, *troubles]
        pause = RETRY_SECONDS if self._last.stages is None else 0.0
        changed = shape != self._last.stages and now - self._last.advert_at >= pause
        if changed or (shape and now - self._last.advert_at > ADVERT_SECONDS):
            self._last.advert_at = now
            self._last.stages = None  # until somebody has taken it
            model, term = self.capability.model, self._plan_store.term
            await self._board.publish(Advert(model, stages, term, troubles=troubles))
            self._last.stages = shape

    async def _announce_joining(self) -> None:
        if not self._last.joined and len(self._membership.capabilities) > 1:
            self._last.joined = True
            await self._membership.tell_some()
