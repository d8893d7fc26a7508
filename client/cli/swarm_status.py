"""SwarmStatus: who is in a swarm, what they serve, who plans and what the plan is."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from client.routing.live_plan import LivePlan, trust_of
from swarm.dht.board import Board
from swarm.election import lease_holders
from swarm.formatting import printable, short_id
from swarm.hardware import DIRECT, RELAYED, Links
from swarm.invites import Invite, unknown_swarm
from swarm.p2p.link_kinds import public_hosts_among, why_relayed
from swarm.records import Advert, Capability, Lease, Manifest, Relay, StageAdvert
from swarm.state_folder import title_of
from swarm.trust.network_clock import CLOCK

LONGEST_NAME = 40  # characters of a peer's name in tables
LOOK_SECONDS = 0.5  # between two looks at an empty board


@dataclass(frozen=True, slots=True)
class SwarmStatus:
    """Everything on the board, at one moment."""

    swarm: str
    model: str
    capabilities: Mapping[str, Capability]
    stages: tuple[StageAdvert, ...]
    planner: str  # "" if nobody holds the lease
    term: int
    relays: Mapping[str, Relay] = field(default_factory=dict)

    def name_of(self, peer: str) -> str:
        """What people call a peer."""
        capability = self.capabilities.get(peer)
        name = capability.name if capability else ""
        return printable(name, LONGEST_NAME) if name else short_id(peer)

    def device_names(self) -> dict[str, str]:
        """What people call each device: its peer's name, with a number if the peer has several."""
        return {
            f"{peer}/{device.index}": self.name_of(peer)
            + (f"/{device.index}" if len(capability.devices) > 1 else "")
            for peer, capability in self.capabilities.items()
            for device in capability.devices
        }

    def ways(self) -> dict[str, str]:
        """How each peer is reached by others, in words."""
        links = Links.of(self.capabilities)
        return {peer: _way_to(peer, links) for peer in self.capabilities}

    def links_by_kind(self) -> dict[str, list[str]]:
        """The links that are not plainly direct, once each, by how they go."""
        found: dict[str, dict[frozenset[str], str]] = {}
        for peer, capability in self.capabilities.items():
            for link in capability.links:
                if link.kind != DIRECT and link.peer in self.capabilities:
                    names = f"{self.name_of(peer)} - {self.name_of(link.peer)}"
                    pairs = found.setdefault(printable(link.kind, LONGEST_NAME), {})
                    pairs.setdefault(frozenset((peer, link.peer)), names)
        return {kind: list(pairs.values()) for kind, pairs in sorted(found.items())}

    def relayed_links(self) -> dict[tuple[str, str], str]:
        """Why a link goes through a relay, for each that does, by its two peers."""
        why = why_relayed(public_hosts_among(self.capabilities, self.relays))
        return {
            (peer, link.peer): why
            for peer, capability in self.capabilities.items()
            for link in capability.links
            if link.kind == RELAYED and link.peer in self.capabilities
        }

    def to_json(self) -> dict[str, Any]:
        """The status in plain values."""
        return {
            "swarm": self.swarm,
            "model": self.model,
            "planner": self.planner,
            "term": self.term,
            "peers": [_peer_json(p, seen) for p, seen in self.capabilities.items()],
            "ways": self.ways(),
            "relays": [{"peer": peer, **asdict(relay)} for peer, relay in self.relays.items()],
            "relayed": [
                {"from": peer, "to": other, "why": why}
                for (peer, other), why in self.relayed_links().items()
            ],
            "stages": [asdict(stage) for stage in self.stages],
        }


async def read_status(board: Board, invite: Invite) -> SwarmStatus:
    """Read the board at once; raises Unreachable."""
    capabilities, adverts, leases, relays = await asyncio.gather(
        board.read(Capability), board.read(Advert), board.read(Lease), board.read(Relay)
    )
    holders = lease_holders(leases, trust_of(invite), CLOCK.now())
    planner = next(iter(holders), "")
    stages = [stage for advert in adverts.values() for stage in advert.stages]
    return SwarmStatus(
        swarm=invite.swarm,
        model=title_of(invite.model),
        capabilities={p: c for p, c in sorted(capabilities.items()) if not c.leaving},
        stages=tuple(sorted(stages, key=lambda stage: (stage.start, stage.end))),
        planner=planner,
        term=leases[planner].term if planner else 0,
        relays={peer: relay for peer, relay in sorted(relays.items()) if not relay.leaving},
    )


async def find_status(board: Board, invite: Invite, seconds: float) -> SwarmStatus:
    """Read the board, for so long again if it is empty: a swarm that just began shows up soon.

    Raises BadInvite if nobody there has a record of the swarm, Unreachable.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    while True:
        status = await read_status(board, invite)
        if status.capabilities or status.stages or len(await board.read(Manifest)):
            return status
        if clock() >= deadline:
            raise unknown_swarm()
        await asyncio.sleep(min(LOOK_SECONDS, seconds))


def why_idle(status: SwarmStatus, live: LivePlan | None) -> dict[str, str]:
    """For each device that serves nothing, by "<peer>/<index>": what it waits for."""
    serving = {f"{m.peer}/{m.device}" for stage in status.stages for m in stage.members}
    devices = (
        f"{peer}/{device.index}"
        for peer, capability in status.capabilities.items()
        for device in capability.devices
    )
    return {each: _why_idle(each, status, live) for each in devices if each not in serving}


def _why_idle(device: str, status: SwarmStatus, live: LivePlan | None) -> str:
    if device.rpartition("/")[0] in Links.of(status.capabilities).unreached:
        return "nobody can reach it (no relay)"
    if not status.planner:
        return "no planner is elected yet"
    if live is None:
        return "the planner has made no plan yet"
    if stage := live.plan.stage_of(device):
        return f"it loads layers {stage.start}-{stage.end - 1}"
    if live.plan.pipelines:
        return "it is a spare: the plan does not need it"
    return live.reason or "the plan is empty"


def _way_to(peer: str, links: Links) -> str:
    """`direct`, `relayed` or `nobody`; of a peer behind a router also to whom it is otherwise."""
    if peer in links.unreached:
        return "nobody (no relay)"
    if peer not in links.undialled:
        return DIRECT
    inwards = [ways[peer].kind for ways in links.measured.values() if peer in ways]
    better = sorted({kind for kind in inwards if kind != RELAYED})
    others = ", ".join(f"{kind} for {inwards.count(kind)}" for kind in better)
    return f"{RELAYED} ({others})" if others else RELAYED


def _peer_json(peer: str, capability: Capability) -> dict[str, Any]:
    facts: dict[str, Any] = asdict(capability)
    return {"peer": peer, **facts}
