"""Overview: who is in a swarm, what they serve, who plans and what the plan is."""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from client.connection import Links
from client.invitation import unknown_swarm
from client.refusal import short
from swarm.board import Board
from swarm.channel import Channel
from swarm.errors import NoRoute, PeerError, Unreachable
from swarm.formatting import printable
from swarm.invites import Invite
from swarm.network_clock import CLOCK
from swarm.plan import Plan
from swarm.records import Advert, Capability, Lease, Manifest, PlanRef, StageAdvert
from swarm.state_folder import title_of

LONGEST_NAME = 40  # characters of a peer's name in tables
LOOK_SECONDS = 0.5  # between two looks at an empty board
MORE_TIME = "Wait until the peers have elected a planner (`swarm status`)."


@dataclass(frozen=True, slots=True)
class LivePlan:
    """The plan that the swarm follows, with its circumstances."""

    plan: Plan
    term: int  # of the planner that made it
    planner: str  # the peer that made it
    reason: str  # why there is no pipeline, if there is none
    document: Mapping[str, Any]  # as its planner wrote it

    @classmethod
    def of_bytes(cls, data: bytes) -> "LivePlan":
        """Read a plan document; raises ValueError on anything else."""
        try:
            document = json.loads(data)
            json.dumps(document, ensure_ascii=False).encode()  # else no terminal can show it
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        if not isinstance(document, dict):
            raise ValueError("it is not a plan document")
        term, planner = document.get("term"), document.get("planner")
        reason = document.get("reason", "")
        if type(term) is not int or not isinstance(planner, str) or not isinstance(reason, str):
            raise ValueError("it lacks its term or its planner")
        return cls(Plan.from_json(document.get("plan", {})), term, planner, reason, document)


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
        name = capability.name if capability else ""
        return printable(name, LONGEST_NAME) if name else short(peer)

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
    planner = planner_of(leases, CLOCK.now())
    stages = [stage for advert in adverts.values() for stage in advert.stages]
    return Overview(
        swarm=invite.swarm,
        model=title_of(invite.model),
        capabilities={p: c for p, c in sorted(capabilities.items()) if not c.leaving},
        stages=tuple(sorted(stages, key=lambda stage: (stage.start, stage.end))),
        planner=planner,
        term=leases[planner].term if planner else 0,
    )


async def find_overview(board: Board, invite: Invite, seconds: float) -> Overview:
    """Read the board, for so long again if it is empty: a swarm that just began shows up soon.

    Raises BadInvite if nobody there has a record of the swarm, Unreachable.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    while True:
        overview = await read_overview(board, invite)
        if overview.capabilities or overview.stages or len(await board.read(Manifest)):
            return overview
        if clock() >= deadline:
            raise unknown_swarm()
        await asyncio.sleep(min(LOOK_SECONDS, seconds))


async def find_plan(links: Links) -> LivePlan | None:
    """The plan of the planner that counts, or None if it cannot be had now."""
    try:
        return await read_plan(links)
    except (NoRoute, Unreachable):
        return None


def why_idle(overview: Overview, live: LivePlan | None) -> dict[str, str]:
    """For each device that serves nothing, by "<peer>/<index>": what it waits for."""
    serving = {f"{m.peer}/{m.device}" for stage in overview.stages for m in stage.members}
    devices = (
        f"{peer}/{device.index}"
        for peer, capability in overview.capabilities.items()
        for device in capability.devices
    )
    return {each: _why_idle(each, overview, live) for each in devices if each not in serving}


def _why_idle(device: str, overview: Overview, live: LivePlan | None) -> str:
    if not overview.planner:
        return "no planner is elected yet"
    if live is None:
        return "the planner has made no plan yet"
    if stage := live.plan.stage_of(device):
        return f"it loads layers {stage.start}-{stage.end - 1}"
    if live.plan.pipelines:
        return "it is a spare: the plan does not need it"
    return live.reason or "the plan is empty"


async def read_plan(links: Links) -> LivePlan:
    """Fetch the plan of the planner that counts; raises NoRoute if it cannot be had, PeerError.

    What others offer is never asked for: anybody may say that he has a later plan.
    """
    leases, references = await asyncio.gather(links.board.read(Lease), links.board.read(PlanRef))
    planner = planner_of(leases, CLOCK.now())
    if planner not in references:
        raise NoRoute("The swarm has no plan yet.", MORE_TIME)
    try:
        return await _fetch(links.channel, planner, references[planner])
    except (PeerError, ValueError) as error:
        cause = f"The plan of {short(planner)} cannot be had: {printable(str(error)).rstrip('.')}."
        raise NoRoute(cause, MORE_TIME) from error


def planner_of(leases: Mapping[str, Lease], now: float) -> str:
    """The peer that plans at a wall-clock second; "" if nobody holds the lease."""
    held = {peer: lease.term for peer, lease in leases.items() if lease.until > now}
    return max(held, key=held.__getitem__, default="")


async def _fetch(channel: Channel, holder: str, reference: PlanRef) -> LivePlan:
    data = await channel.ask(holder, "plan", reference.digest.encode())
    if hashlib.sha256(data).hexdigest() != reference.digest:
        raise ValueError("it is not the one that was announced")
    live = LivePlan.of_bytes(data)
    if (live.planner, live.term) != (holder, reference.term):
        raise ValueError("it is another planner's")
    return live


def _peer_json(peer: str, capability: Capability) -> dict[str, Any]:
    facts: dict[str, Any] = asdict(capability)
    return {"peer": peer, **facts}
