"""SwarmStatus: who is in a swarm, what they serve, who plans and what the plan is."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from client.routing.live_plan import LivePlan, trust_of
from swarm.dht.board import Board
from swarm.election import lease_holders
from swarm.formatting import printable, short_id
from swarm.hardware import DIRECT, PUNCHED, RELAYED, Link, Links, assumed_relayed
from swarm.invites import Invite, unknown_swarm
from swarm.p2p.link_kinds import public_hosts_among, why_not_direct
from swarm.records import Advert, Capability, Lease, Manifest, Relay, StageAdvert, Trouble
from swarm.state_folder import title_of
from swarm.trust.network_clock import CLOCK

LONGEST_NAME = 40  # characters of a peer's name in tables
LONGEST_CAUSE = 120  # characters of what a device says of its trouble
LOOK_SECONDS = 0.5  # between two looks at an empty board


@dataclass(frozen=True, slots=True)
class LinkView:
    """How two peers are connected, by their own words."""

    peers: tuple[str, str]
    kind: str
    round_trip_seconds: float
    bytes_per_second: float  # the slower way
    is_measured: bool  # else that is what is assumed of a link through a relay
    why: str  # it is not direct; "" if it is


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
    troubles: Mapping[str, Trouble] = field(default_factory=dict)  # by "<peer>/<index>"

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

    def links(self) -> list[LinkView]:
        """Every link that a peer tells of, once; first those that are not direct."""
        told: dict[tuple[str, str], list[Link]] = {}
        for peer, capability in self.capabilities.items():
            for link in capability.links:
                if link.peer in self.capabilities and link.peer != peer:
                    told.setdefault(_pair(peer, link.peer), []).append(link)
        hosts = public_hosts_among(self.capabilities, self.relays)
        views = [self._view(pair, links, hosts) for pair, links in sorted(told.items())]
        return sorted(views, key=lambda view: -_directness(view.kind))

    def _view(self, pair: tuple[str, str], links: Sequence[Link], public_hosts: int) -> LinkView:
        """What both sides say of a link comes to: the worse of it, where they do not agree."""
        kind = max((link.kind for link in links), key=_directness)
        one, other = (self.capabilities[peer] for peer in pair)
        return LinkView(
            peers=pair,
            kind=kind,
            round_trip_seconds=max(link.round_trip_seconds for link in links),
            bytes_per_second=min(link.bytes_per_second for link in links),
            is_measured=any(link != assumed_relayed(link.peer) for link in links),
            why=why_not_direct(one, other, public_hosts) if kind == RELAYED else "",
        )

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
            "links": [asdict(link) for link in self.links()],
            "stages": [asdict(stage) for stage in self.stages],
            "troubles": [{"peer": _peer_of(d), **asdict(t)} for d, t in self.troubles.items()],
        }


async def read_status(board: Board, invite: Invite) -> SwarmStatus:
    """Read the board at once; raises Unreachable."""
    found = await asyncio.gather(
        board.read(Capability), board.read(Advert), board.read(Lease), board.read(Relay)
    )
    return status_of(invite, *found)


def status_of(
    invite: Invite,
    capabilities: Mapping[str, Capability],
    adverts: Mapping[str, Advert],
    leases: Mapping[str, Lease],
    relays: Mapping[str, Relay],
) -> SwarmStatus:
    """What these records say, each by its peer."""
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
        troubles={f"{p}/{t.device}": t for p, each in adverts.items() for t in each.troubles},
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
    """For each device that serves nothing, by "<peer>/<index>": what it waits for.

    And for those that serve on while the plan leaves them out.
    """
    left_out = live.left_out if live else {}
    members = [member for stage in status.stages for member in stage.members]
    serving = {f"{m.peer}/{m.device}" for m in members if m.peer not in left_out}
    devices = (
        f"{peer}/{device.index}"
        for peer, capability in status.capabilities.items()
        for device in capability.devices
    )
    return {each: _why_idle(each, status, live) for each in devices if each not in serving}


def _why_idle(device: str, status: SwarmStatus, live: LivePlan | None) -> str:
    peer = _peer_of(device)
    if peer in Links.of(status.capabilities).unreached:
        return "nobody can reach it (no relay)"
    if trouble := status.troubles.get(device):
        return _trouble_words(trouble)
    if not status.planner:
        return "no planner is elected yet"
    if live is None:
        return "the planner has made no plan yet"
    if stage := live.plan.stage_of(device):
        return f"it loads layers {stage.start}-{stage.end - 1}"
    if cause := live.left_out.get(peer):
        return f"it is left out of the plan for a while: {cause}"
    if live.plan.pipelines:
        return "it is a spare: the plan does not need it"
    return live.reason or "the plan is empty"


def _trouble_words(trouble: Trouble) -> str:
    tries = f" (tried {trouble.failures} times)" if trouble.failures > 1 else ""
    cause = printable(trouble.cause, LONGEST_CAUSE).rstrip(".")
    return f"it cannot load layers {trouble.start}-{trouble.end - 1}: {cause}{tries}"


def _peer_of(device: str) -> str:
    return device.rpartition("/")[0]


def _pair(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)


def _directness(kind: str) -> int:
    """The higher the worse; what later versions call otherwise stands between."""
    return {DIRECT: 0, PUNCHED: 1, RELAYED: 3}.get(kind, 2)


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
