"""Live plan: the plan that a swarm follows, fetched from the planner that counts."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from client.routing.route import Place
from swarm.dht.board import Board
from swarm.election import covered_plan, lease_holders
from swarm.errors import NoRoute, PeerError, Unreachable
from swarm.formatting import printable, short_id
from swarm.invites import Invite
from swarm.p2p.channel import Channel
from swarm.p2p.plan_document import fetch_document, read_own
from swarm.plan import Plan
from swarm.records import Lease, PlanRef
from swarm.trust.certificates import PlannerTrust
from swarm.trust.network_clock import CLOCK

HOLDERS_ASKED = 3  # the first that answers counts
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

    @property
    def left_out(self) -> dict[str, str]:
        """Peers that did not do their part, and how, by the planner's word."""
        told = self.document.get("left_out")
        pairs = told.items() if isinstance(told, dict) else ()
        return {peer: cause for peer, cause in pairs if isinstance(cause, str)}

    def places(self) -> frozenset[Place]:
        """Leader, first layer and end of every stage that the plan wants served."""
        return frozenset(
            (holder[0].peer, stage.start, stage.end)
            for pipeline in self.plan.pipelines
            for stage in pipeline.stages
            for holder in stage.holders or (stage.shards,)
            if holder
        )


def trust_of(invite: Invite) -> PlannerTrust:
    """Which peers of an invite's swarm may plan."""
    return PlannerTrust(invite.swarm, is_private=bool(invite.key))


async def find_plan(board: Board, channel: Channel, trust: PlannerTrust) -> LivePlan | None:
    """The plan of the planner that counts, or None if it cannot be had now."""
    try:
        return await read_plan(board, channel, trust)
    except (NoRoute, Unreachable):
        return None


async def read_plan(board: Board, channel: Channel, trust: PlannerTrust) -> LivePlan:
    """Fetch the plan that counts: of the best-ranked peer that may plan, holds the lease, answers.

    Raises NoRoute if it cannot be had, Unreachable. What others offer is never asked for: anybody
    may say that he has a later plan.
    """
    leases, references = await asyncio.gather(board.read(Lease), board.read(PlanRef))
    problem = NoRoute("The swarm has no plan yet.", MORE_TIME)
    for planner in lease_holders(leases, trust, CLOCK.now())[:HOLDERS_ASKED]:
        reference = covered_plan(references, planner, leases[planner].term)
        if reference is None:
            continue
        try:
            data = await fetch_document(channel, planner, reference.digest)
            return read_own(data, LivePlan.of_bytes, planner, reference.term)
        except (PeerError, ValueError) as error:
            why = printable(str(error)).rstrip(".")
            problem = NoRoute(f"The plan of {short_id(planner)} cannot be had: {why}.", MORE_TIME)
    raise problem
