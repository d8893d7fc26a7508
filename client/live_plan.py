"""Live plan: the plan that a swarm follows, fetched from the planner that counts."""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from client.refusal import short
from client.route import Place
from swarm.board import Board
from swarm.channel import Channel
from swarm.errors import NoRoute, PeerError, Unreachable
from swarm.formatting import printable
from swarm.network_clock import CLOCK
from swarm.plan import Plan
from swarm.records import Lease, PlanRef

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

    def places(self) -> frozenset[Place]:
        """Leader, first layer and end of every stage that the plan wants served."""
        return frozenset(
            (holder[0].peer, stage.start, stage.end)
            for pipeline in self.plan.pipelines
            for stage in pipeline.stages
            for holder in stage.holders or (stage.shards,)
            if holder
        )


async def find_plan(board: Board, channel: Channel) -> LivePlan | None:
    """The plan of the planner that counts, or None if it cannot be had now."""
    try:
        return await read_plan(board, channel)
    except (NoRoute, Unreachable):
        return None


async def read_plan(board: Board, channel: Channel) -> LivePlan:
    """Fetch the plan of the planner that counts; raises NoRoute if it cannot be had, PeerError.

    What others offer is never asked for: anybody may say that he has a later plan.
    """
    leases, references = await asyncio.gather(board.read(Lease), board.read(PlanRef))
    planner = planner_of(leases, CLOCK.now())
    if planner not in references:
        raise NoRoute("The swarm has no plan yet.", MORE_TIME)
    try:
        return await _fetch(channel, planner, references[planner])
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
