"""Overview: who is in a swarm, what they serve, who plans and what the plan is."""

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from client.connection import Links
from client.refusal import short
from swarm.board import Board
from swarm.channel import Channel
from swarm.errors import NoRoute, PeerError, SwarmError
from swarm.invites import Invite
from swarm.plan import Plan
from swarm.records import Advert, Capability, Lease, PlanRef, StageAdvert

MORE_TIME = "Wait until the peers have elected a planner (`swarm status`)."


@dataclass(frozen=True, slots=True)
class LivePlan:
    """The plan that the swarm follows, with its circumstances."""

    plan: Plan
    document: Mapping[str, Any]  # as its planner wrote it

    @property
    def term(self) -> int:
        """The term of the planner that made it."""
        return int(self.document.get("term", 0))

    @property
    def planner(self) -> str:
        """The peer that made it."""
        return str(self.document.get("planner", ""))


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything on the board, at one moment."""

    swarm: str
    model: str
    capabilities: Mapping[str, Capability]
    stages: tuple[StageAdvert, ...]
    planner: str  # "" if nobody holds the lease
    term: int

    def name_of(self, peer: str) -> str:
        """What people call a peer."""
        capability = self.capabilities.get(peer)
        return capability.name if capability and capability.name else short(peer)

    def device_names(self) -> dict[str, str]:
        """What people call each device: its peer's name, with a number if the peer has several."""
        return {
            f"{peer}/{device.index}": self.name_of(peer)
            + (f"/{device.index}" if len(capability.devices) > 1 else "")
            for peer, capability in self.capabilities.items()
            for device in capability.devices
        }

    def to_json(self) -> dict[str, Any]:
        """The overview in plain values."""
        return {
            "swarm": self.swarm,
            "model": self.model,
            "planner": self.planner,
            "term": self.term,
            "peers": [_peer_json(peer, seen) for peer, seen in self.capabilities.items()],
            "stages": [asdict(stage) for stage in self.stages],
        }


async def read_overview(board: Board, invite: Invite) -> Overview:
    """Read the board at once; raises Unreachable."""
    capabilities, adverts, leases = await asyncio.gather(
        board.read(Capability), board.read(Advert), board.read(Lease)
    )
    held = {peer: lease for peer, lease in leases.items() if lease.until > time.time()}
    planner = max(held, key=lambda peer: held[peer].term, default="")
    stages = [stage for advert in adverts.values() for stage in advert.stages]
    return Overview(
        swarm=invite.swarm,
        model=invite.model,
        capabilities={p: c for p, c in sorted(capabilities.items()) if not c.leaving},
        stages=tuple(sorted(stages, key=lambda stage: (stage.start, stage.end))),
        planner=planner,
        term=held[planner].term if planner else 0,
    )


async def read_plan(links: Links) -> LivePlan:
    """Fetch the latest plan from its planner, else the one before; raises NoRoute, PeerError."""
    references = await links.board.read(PlanRef)
    ranked = sorted(references.items(), key=lambda item: _order_of(item[1]), reverse=True)
    problem: SwarmError = NoRoute("The swarm has no plan yet.", MORE_TIME)
    for holder, reference in ranked:
        try:
            return await _fetch(links.channel, holder, reference)
        except (PeerError, ValueError) as error:
            problem = NoRoute(f"The plan of {short(holder)} cannot be had: {error}.", MORE_TIME)
    raise problem


def _order_of(reference: PlanRef) -> tuple[int, int, str]:
    return reference.term, -reference.rank, reference.digest


async def _fetch(channel: Channel, holder: str, reference: PlanRef) -> LivePlan:
    data = await channel.ask(holder, "plan", reference.digest.encode())
    if hashlib.sha256(data).hexdigest() != reference.digest:
        raise ValueError("it is not the one that was announced")
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError("it is not a plan document")
    return LivePlan(Plan.from_json(document.get("plan", {})), document)


def _peer_json(peer: str, capability: Capability) -> dict[str, Any]:
    facts: dict[str, Any] = asdict(capability)
    return {"peer": peer, **facts}
