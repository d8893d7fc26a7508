"""The planner's office: while elected, plan whenever the peers change, and publish the plan."""

import asyncio
import logging
import math
import time

from node.candidacy import Candidacy
from node.duties import RENEW_SECONDS
from node.neighbourhood import Neighbourhood
from node.plan_shelf import PlanShelf
from node.planning import PlanDocument, next_plan
from swarm.board import Board
from swarm.model import ModelSpec
from swarm.plan import Plan
from swarm.records import Capability, PlanRef

logger = logging.getLogger(__name__)

CALM_SECONDS = 1.5  # peers that join together are planned together
DWELL_SECONDS = 300.0  # what works is left alone for so long
REPUBLISH_SECONDS = PlanRef.TTL_SECONDS / 3
SEARCH_ERRORS = (ValueError, ArithmeticError, LookupError, AssertionError)

Snapshot = dict[str, Capability]
Shape = tuple[tuple[int, float, str], ...]  # of every device: memory, bytes of a weight, dtype
Shapes = dict[str, Shape]


class Office:
    """Turns changes among the peers into plans; works only while its node is elected."""

    def __init__(
        self,
        spec: ModelSpec,
        board: Board,
        neighbourhood: Neighbourhood,
        candidacy: Candidacy,
        shelf: PlanShelf,
    ) -> None:
        self._spec = spec
        self._board = board
        self._neighbourhood = neighbourhood
        self._candidacy = candidacy
        self._shelf = shelf
        self._seen: Shapes = {}
        self._changed_at = time.monotonic()
        self._planned: Shapes | None = None
        self._reference: PlanRef | None = None
        self._published_at = 0.0
        self._reconsider_at = math.inf  # when whole pipelines may move for a better plan

    async def work(self) -> bool:
        """Plan if the peers have changed and calmed down; else keep the last plan on the board.

        True if there is a new plan on the board.
        """
        known = self._neighbourhood.capabilities
        snapshot = {peer: c for peer, c in known.items() if _makes_sense(c)}
        shape = {peer: _shape_of(capability) for peer, capability in snapshot.items()}
        now = time.monotonic()
        if shape != self._seen:
            lost = set(self._seen) - set(shape)
            self._seen = shape
            self._changed_at = now - CALM_SECONDS if lost else now
        calm = now - self._changed_at >= CALM_SECONDS
        if calm and (shape != self._planned or now > self._reconsider_at):
            is_new = await self._plan(snapshot)
            self._planned = shape
            return is_new
        if self._reference and now - self._published_at > REPUBLISH_SECONDS:
            await self._publish(self._reference)
        return False

    def forget(self) -> None:
        """No longer elected: plan afresh next time."""
        self._planned = self._reference = None

    async def _plan(self, snapshot: Snapshot) -> bool:
        accepted = self._shelf.accepted
        current = accepted.plan if accepted else None
        may_move = time.monotonic() > self._reconsider_at
        if may_move:
            self._reconsider_at = math.inf
        try:
            plan, reason = await self._searched(snapshot, current, may_move=may_move)
        except SEARCH_ERRORS:  # others' records: they may cost a plan, not the node
            logger.exception("no plan could be made for these peers")
            return False
        if accepted and (plan, reason) == (accepted.plan, accepted.reason) and self._reference:
            return False
        await self._announce(plan, reason)
        return True

    async def _searched(
        self, snapshot: Snapshot, current: Plan | None, *, may_move: bool
    ) -> tuple[Plan, str]:
        """Search in a thread and keep the lease meanwhile: a large swarm may outlast it."""
        search = asyncio.create_task(
            asyncio.to_thread(next_plan, self._spec, snapshot, current, may_move=may_move)
        )
        try:
            while not (await asyncio.wait([search], timeout=RENEW_SECONDS))[0]:
                await self._candidacy.pursue()
            return search.result()
        finally:
            search.cancel()

    async def _announce(self, plan: Plan, reason: str) -> None:
        term = await self._candidacy.raise_term()
        me, rank = self._neighbourhood.me, self._candidacy.rank
        document = PlanDocument(plan, term, me, self._spec.digest, reason=reason)
        reference = self._shelf.propose(document, rank)
        pipelines = len(plan.pipelines)
        logger.info("term %d: %d pipeline(s) %s", term, pipelines, reason)
        self._reference = reference
        self._reconsider_at = time.monotonic() + DWELL_SECONDS
        await self._publish(reference)
        await self._neighbourhood.tell_news(self._neighbourhood.capabilities)

    async def _publish(self, reference: PlanRef) -> None:
        await self._board.publish(reference)
        self._published_at = time.monotonic()


def _shape_of(capability: Capability) -> Shape:
    """What calls for another plan when it changes."""
    return tuple((d.memory_bytes, d.weight_bytes, d.dtype) for d in capability.devices)


def _makes_sense(capability: Capability) -> bool:
    """Whether the search can take a peer's record at its word."""
    indices = [device.index for device in capability.devices]
    return len(set(indices)) == len(indices)
