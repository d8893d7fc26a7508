"""PlannerLoop: while elected, plan whenever the peers change, and publish the plan."""

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Mapping
from itertools import islice

from node.control.election_policy import RENEW_SECONDS
from node.control.eligible_peers import Choice, EligiblePeers, Standing
from node.control.leader_election import LeaderElection
from node.control.membership import Membership
from node.control.next_plan import LEFT_OUT_CAP, REASON_CAP, PlanDocument, next_plan
from node.control.plan_store import PlanStore
from swarm.dht.board import Board
from swarm.errors import BadInput
from swarm.formatting import printable, short_id
from swarm.model_spec import ModelSpec
from swarm.plan import Plan
from swarm.records import PlanRef
from swarm.task_set import TaskSet

logger = logging.getLogger(__name__)

CALM_SECONDS = 1.5  # peers that join together are planned together
LATEST_SECONDS = 10.0  # after the first change, however many follow it, and whatever is measured
DWELL_SECONDS = 300.0  # what works is left alone for so long
REPUBLISH_SECONDS = PlanRef.TTL_SECONDS / 3
UNREACHED_SHOWN = 3  # peers named in the reason of an empty plan
CATCH_UP_SECONDS = 2.0  # between terms, while most peers follow a later one than ours
SEARCH_ERRORS = (ValueError, ArithmeticError, LookupError, AssertionError)

Shapes = dict[str, Standing]


class PlannerLoop:
    """Turns changes among the peers into plans; works only while its node is elected."""

    def __init__(
        self,
        spec: ModelSpec,
        board: Board,
        membership: Membership,
        election: LeaderElection,
        plan_store: PlanStore,
    ) -> None:
        self._spec = spec
        self._board = board
        self._membership = membership
        self._election = election
        self._plan_store = plan_store
        self._seen: Shapes = {}
        self._eligible_peers = EligiblePeers(spec)
        self._changed_at = time.monotonic()
        self._changed_since: float | None = None  # the first change that is not planned yet
        self._planned: Shapes | None = None
        self._was_measured = True  # whether the ways between peers were known to the last plan
        self._reference: PlanRef | None = None
        self._published_at = 0.0
        self._reconsider_at = math.inf  # when whole pipelines may move for a better plan
        self._missed: frozenset[str] = frozenset()  # peers that the plan in force is kept for

    async def work(self) -> bool:
        """Plan if the peers have changed and calmed down; else keep the last plan on the board.

        True if there is a new plan on the board. A planner that cannot vote for its own plan, since
        its disk is full, stands down before it raises the term.
        """
        try:
            return await self._work()
        except BadInput as error:
            logger.warning("no plan can be voted for: %s", error)
            await self._election.stand_down()
            return False

    async def _work(self) -> bool:
        if self._planned is None:  # newly elected, perhaps after a restart
            await self._plan_store.recall(self._membership)
        now = time.monotonic()
        accepted = self._plan_store.accepted
        plan = accepted.plan if accepted else None
        choice = self._eligible_peers.choose(self._membership, plan, now)
        self._note_shapes(choice.shapes, now)
        if not self._was_measured and choice.is_measured:
            self._reconsider_at = -math.inf
        is_missed = self._missed <= self._known()
        is_due = choice.shapes != self._planned or now > self._reconsider_at or not is_missed
        if is_due and self._is_calm(now) and (self._has_waited(now) or choice.is_measured):
            self._changed_since = None
            self._was_measured = choice.is_measured
            is_new = await self._plan(choice)
            self._planned = choice.shapes
            return is_new
        if self._reference and now - self._published_at > self._pause(self._reference):
            return await self._say_again(self._reference)
        return False

    def _pause(self, reference: PlanRef) -> float:
        """Until the plan is said again: soon if most peers cannot follow it, for want of a term.

        A single peer that says it is ahead, which may be a lie, hurries nobody.
        """
        is_behind = self._membership.most_follow_later(reference.term)
        return CATCH_UP_SECONDS if is_behind else REPUBLISH_SECONDS

    def forget(self) -> None:
        """No longer elected: plan afresh next time."""
        self._planned = self._reference = self._changed_since = None
        self._seen, self._missed = {}, frozenset()
        self._was_measured = True

    def _note_shapes(self, shapes: Shapes, now: float) -> None:
        if shapes == self._seen:
            return
        lost = self._seen.keys() - shapes.keys()
        self._seen = shapes
        self._changed_at = now - CALM_SECONDS if lost else now
        self._changed_since = now - LATEST_SECONDS if lost else self._changed_since or now

    def _is_calm(self, now: float) -> bool:
        """Whether the peers have calmed down, or have kept us waiting for long enough."""
        is_late = self._changed_since is not None and self._has_waited(now)
        return now - self._changed_at >= CALM_SECONDS or is_late

    def _has_waited(self, now: float) -> bool:
        """Whether newcomers have had their time to measure their ways; nobody waits for a loss."""
        return self._changed_since is None or now - self._changed_since >= LATEST_SECONDS

    async def _say_again(self, reference: PlanRef) -> bool:
        """Keep the plan on the board, under a higher term if others follow one that is later."""
        followed = self._membership.followed_term
        accepted = self._plan_store.accepted
        if followed > reference.term and accepted and accepted.planner == self._membership.me:
            logger.info("others follow term %d, ours is %d", followed, reference.term)
            await self._announce(accepted.plan, accepted.reason, accepted.left_out)
            return True
        await self._publish(reference)
        return False

    async def _plan(self, choice: Choice) -> bool:
        accepted = self._plan_store.accepted
        current = accepted.plan if accepted else None
        may_move = time.monotonic() > self._reconsider_at
        if may_move:
            self._reconsider_at = math.inf
        try:
            plan, reason = await self._searched(choice, current, may_move=may_move)
        except SEARCH_ERRORS:  # others' records: they may cost a plan, not the node
            logger.exception("no plan could be made for these peers")
            self._reconsider_at = time.monotonic() + DWELL_SECONDS
            return False
        self._missed = self._missed_by(plan, current)
        if self._missed:
            logger.info("the plan is kept for %s: without them there is none", set(self._missed))
            return False
        if accepted and (plan, reason) == (accepted.plan, accepted.reason) and self._reference:
            return False
        await self._announce(plan, reason, dict(islice(choice.causes.items(), LEFT_OUT_CAP)))
        self._reconsider_at = time.monotonic() + DWELL_SECONDS
        return True

    def _missed_by(self, plan: Plan, current: Plan | None) -> frozenset[str]:
        """Peers of the plan in force for which it is kept: they only fail to answer us.

        If no plan does without them, none is worse than the one in force: others may reach them,
        and clients relay between stages that cannot reach each other. It is kept as long as their
        records live.
        """
        if plan.pipelines or current is None:
            return frozenset()
        parts = {shard.peer for _, shard in current.shards()}
        missed = parts - self._membership.present.keys()
        return frozenset(missed) if missed and parts <= self._known() else frozenset()

    def _known(self) -> set[str]:
        """Who has a record and is not leaving, whether it answers us or not."""
        return {peer for peer, each in self._membership.known.items() if not each.leaving}

    async def _searched(
        self, choice: Choice, current: Plan | None, *, may_move: bool
    ) -> tuple[Plan, str]:
        """Search in a thread and keep the lease meanwhile: a large swarm may outlast it."""
        work = asyncio.to_thread(best_plan, self._spec, choice, current, may_move=may_move)
        async with TaskSet() as tasks:
            search = tasks.create("a search for a plan", work, is_awaited=True)
            while not (await asyncio.wait([search], timeout=RENEW_SECONDS))[0]:
                await self._election.pursue()
            return search.result()

    async def _announce(self, plan: Plan, reason: str, left_out: Mapping[str, str]) -> None:
        self._plan_store.require_disk()
        trusted = self._membership.trusted_term
        term = await self._election.raise_term(self._membership.followed_term)
        me, rank = self._membership.me, self._election.rank
        document = PlanDocument(
            plan, term, me, self._spec.digest, reason=reason[:REASON_CAP], left_out=left_out
        )
        reference = self._plan_store.propose(document, rank, common_term=trusted)
        self._election.note_success()
        pipelines = len(plan.pipelines)
        logger.info("term %d: %d pipeline(s) %s", term, pipelines, reason)
        self._reference = reference
        await self._publish(reference)
        await self._membership.tell_news(self._membership.capabilities)

    async def _publish(self, reference: PlanRef) -> None:
        await self._board.publish(reference)
        self._published_at = time.monotonic()


def best_plan(
    spec: ModelSpec, choice: Choice, current: Plan | None, *, may_move: bool
) -> tuple[Plan, str]:
    """The plan for the peers that keep their word; with the others only if there is none.

    Peers on trial get what is left beside a plan without them, if there is one.
    """
    reserves = choice.reserves
    if choice.on_trial:
        proven = tuple(s for s in reserves if {m.peer for m in s.shards} <= choice.proven.keys())
        safe, _ = next_plan(spec, choice.proven, current, may_move=may_move, reserves=proven)
        if safe.pipelines:
            current, may_move = safe, False
    plan, reason = next_plan(spec, choice.able, current, may_move=may_move, reserves=reserves)
    if not plan.pipelines and choice.doubtful:
        everybody = choice.able | choice.doubtful
        plan, reason = next_plan(
            spec, everybody, current, may_move=may_move, reserves=choice.reserves
        )
    return plan, reason if plan.pipelines else f"{reason}{_unreached_words(choice.unreached)}"


def _unreached_words(peers: Iterable[str]) -> str:
    """Who has no part for want of a way to it."""
    known = sorted(peers)
    names = ", ".join(short_id(printable(peer)) for peer in known[:UNREACHED_SHOWN])
    more = f" and {len(known) - UNREACHED_SHOWN} more" if len(known) > UNREACHED_SHOWN else ""
    return f" Left out is whom nobody can reach (no relay): {names}{more}." if known else ""
