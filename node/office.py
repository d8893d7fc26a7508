"""The planner's office: while elected, plan whenever the peers change, and publish the plan."""

import asyncio
import logging
import time

from node.candidacy import Candidacy
from node.neighbourhood import Neighbourhood
from node.plan_shelf import PlanShelf
from node.planning import PlanDocument, next_plan
from swarm.board import Board
from swarm.model import ModelSpec
from swarm.plan import Plan
from swarm.records import Capability, PlanRef

logger = logging.getLogger(__name__)

CALM_SECONDS = 1.5  # peers that join together are planned together
REPUBLISH_SECONDS = PlanRef.TTL_SECONDS / 3

Snapshot = dict[str, Capability]


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
        self._seen: dict[str, tuple[int, ...]] = {}
        self._changed_at = time.monotonic()
        self._planned: dict[str, tuple[int, ...]] | None = None
        self._reference: PlanRef | None = None
        self._published_at = 0.0

    async def work(self) -> None:
        """Plan if the peers have changed and calmed down; else keep the last plan on the board."""
        snapshot = dict(self._neighbourhood.capabilities)
        shape = {peer: tuple(d.memory_bytes for d in c.devices) for peer, c in snapshot.items()}
        now = time.monotonic()
        if shape != self._seen:
            lost = set(self._seen) - set(shape)
            self._seen = shape
            self._changed_at = now - CALM_SECONDS if lost else now
        if shape != self._planned and now - self._changed_at >= CALM_SECONDS:
            await self._plan(snapshot)
            self._planned = shape
        elif self._reference and now - self._published_at > REPUBLISH_SECONDS:
            await self._publish(self._reference)

    def forget(self) -> None:
        """No longer elected: plan afresh next time."""
        self._planned = self._reference = None

    async def _plan(self, snapshot: Snapshot) -> None:
        accepted = self._shelf.accepted
        current = accepted.plan if accepted else None
        plan, reason = await asyncio.to_thread(next_plan, self._spec, snapshot, current)
        if accepted and (plan, reason) == (accepted.plan, accepted.reason) and self._reference:
            return
        await self._announce(plan, reason)

    async def _announce(self, plan: Plan, reason: str) -> None:
        term = await self._candidacy.raise_term()
        me, rank = self._neighbourhood.me, self._candidacy.rank
        document = PlanDocument(plan, term, me, self._spec.digest, reason=reason)
        reference = self._shelf.propose(document, rank)
        pipelines = len(plan.pipelines)
        logger.info("term %d: %d pipeline(s) %s", term, pipelines, reason)
        self._reference = reference
        await self._publish(reference)
        await self._neighbourhood.tell_news(self._neighbourhood.capabilities)

    async def _publish(self, reference: PlanRef) -> None:
        await self._board.publish(reference)
        self._published_at = time.monotonic()
