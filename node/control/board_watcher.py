"""BoardWatcher: looks at the board again and again - who is there, who plans, which plan counts."""

import asyncio
import logging
import time
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from node.control.certification import Certification
from node.control.failure_detector import crowding
from node.control.leader_election import LeaderElection
from node.control.local_rule import LocalRule
from node.control.membership import Membership, Standing
from node.control.plan_store import PlanStore
from node.control.planner_loop import PlannerLoop
from swarm.errors import SwarmError
from swarm.p2p.channel import Channel
from swarm.p2p.rate_limit import Budget
from swarm.plan import Plan
from swarm.records import Capability

logger = logging.getLogger(__name__)

ROUND_SECONDS = 120.0  # of a loop that hangs: it is begun again, and the log says where it was
LEAST_SECONDS = 0.2  # however much news there is
QUICK_SECONDS = 0.4  # between looks at the board while things change
SLOW_SECONDS = 5.0  # and when they do not
CHANGING_SECONDS = 12.0  # more than a planner waits for the first change to be the last
MISSED_SECONDS = 2.0  # of quick looks after somebody did not answer
NEWS_SECONDS = 2.0  # and after news, which may be quicker than the board
VACANT_SECONDS = 10.0  # without a planner, after which it matters to everybody who serves what
NEWS_PER_SECOND, NEWS_BURST = 0.5, 10  # looks at the board that one peer may ask for


@dataclass(frozen=True, slots=True)
class Control:
    """The parts of a node that decide together what it is to serve."""

    membership: Membership
    certification: Certification
    election: LeaderElection
    planner_loop: PlannerLoop
    plan_store: PlanStore
    local_rule: LocalRule | None = None  # of whoever has devices


class Onlooker(Protocol):
    """Whose board is watched: a node, or what stands for one in a simulated swarm."""

    @property
    def own_capability(self) -> Capability | None:
        """What it offers, once that is known."""

    @property
    def is_settled(self) -> bool:
        """Whether there is a plan, and all is loaded that it asks of us."""

    @property
    def asks_for_adverts(self) -> bool:
        """Whether it wants to know who serves what, although it does not plan."""

    def note_look(self, *, adopted: bool) -> None:
        """The board was looked at, and perhaps another plan adopted."""


class BoardWatcher:
    """The loop that keeps a node's view of its swarm, stands for election and follows the plan."""

    def __init__(self, control: Control, channel: Channel, onlooker: Onlooker) -> None:
        """Answers the question "news" from now on: a peer asks for a look at once."""
        self._control = control
        self._onlooker = onlooker
        self._changing_until = time.monotonic() + CHANGING_SECONDS
        self._news = asyncio.Event()
        self._news_budget = Budget(NEWS_PER_SECOND, NEWS_BURST, _now)
        self._total_news_budget = Budget(4 * NEWS_PER_SECOND, 3 * NEWS_BURST, _now)
        self._catching_up = asyncio.Lock()
        self._caught_up_at = -QUICK_SECONDS
        channel.answer("news", self._hear_news)

    async def run(self) -> None:
        """Look, quickly while things change, and at once when a peer has news; never ends."""
        while True:
            try:
                async with asyncio.timeout(ROUND_SECONDS):
                    await self.look()
            except SwarmError as error:
                logger.warning("the board is out of reach: %s", error)
            changing = time.monotonic() < self._changing_until
            await asyncio.sleep(LEAST_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause(changing=changing)):
                    await self._news.wait()
            self._news.clear()

    def _pause(self, *, changing: bool) -> float:
        """Between looks: in a crowd something changes all the time, and news come unasked."""
        quick = QUICK_SECONDS * crowding(len(self._control.membership.known))
        return min(quick, SLOW_SECONDS) if changing else SLOW_SECONDS

    async def look(self) -> None:
        """See who is there, do our part in the election, and follow the plan; raises SwarmError."""
        control, membership = self._control, self._control.membership
        before = membership.capabilities.keys()
        self._note_standing()
        await membership.refresh()
        if own := self._onlooker.own_capability:
            membership.note_own(own)
        await membership.ask_whether_alive(membership.due(everybody=control.election.holds))
        await self._see_to_certificates()
        await self._plan()
        plan = control.plan_store.plan
        adopted = await control.plan_store.adopt_latest(membership)
        self._follow_local_rule()
        self._onlooker.note_look(adopted=adopted)
        self._note_haste(before, plan)

    def _note_haste(self, before: AbstractSet[str], plan: Plan | None) -> None:
        """See whether to look again soon.

        What changes among the others matters to who plans, and to all while nobody does. Whoever
        serves what it should under a planner hears from that planner.
        """
        control = self._control
        is_led = control.membership.planner is not None and not control.election.holds
        if not self._onlooker.is_settled or (not is_led and self._has_changed(before, plan)):
            self._look_quickly(CHANGING_SECONDS)
        elif control.membership.has_misses:
            self._look_quickly(MISSED_SECONDS)

    def _has_changed(self, before: AbstractSet[str], plan: Plan | None) -> bool:
        """Whether who is there changed, or the plan, of which a later term alone is none."""
        is_other_plan = plan != self._control.plan_store.plan
        return is_other_plan or before != self._control.membership.capabilities.keys()

    def _look_quickly(self, seconds: float) -> None:
        self._changing_until = max(self._changing_until, time.monotonic() + seconds)

    async def catch_up(self) -> None:
        """Look for a later plan; not at every word of a stranger."""
        control = self._control
        async with self._catching_up:  # who comes meanwhile profits from the same look
            if time.monotonic() - self._caught_up_at > QUICK_SECONDS:
                await control.membership.refresh()
                adopted = await control.plan_store.adopt_latest(control.membership)
                self._caught_up_at = time.monotonic()
                if adopted:  # the next look finds nothing new: now is the time to say so
                    self._onlooker.note_look(adopted=True)

    def may_hurry(self, peer: str) -> bool:
        """Whether a peer may make us look at the board at once; all together not without end."""
        return self._news_budget.takes(peer) and self._total_news_budget.takes("all")

    async def _plan(self) -> None:
        """Do our part in the election; plan while we hold the lease."""
        control = self._control
        if await control.election.pursue():
            if await control.planner_loop.work():
                await control.membership.refresh()  # we follow our own plan as soon as others do
        elif not control.election.holds:
            control.planner_loop.forget()

    def _follow_local_rule(self) -> None:
        """Let idle devices take what nobody serves, while nobody plans."""
        control = self._control
        if control.local_rule:
            is_planned = control.election.holds or control.membership.planner is not None
            control.local_rule.look(self._onlooker.own_capability, is_planned=is_planned)

    def _note_standing(self) -> None:
        """Tell the membership what we may do and what we want to know."""
        control, membership = self._control, self._control.membership
        term = control.plan_store.term
        membership.verified_term = term
        membership.own = Standing(term, control.certification.proof)
        is_unplanned = time.monotonic() - membership.vacant_since > VACANT_SECONDS
        is_watching = control.election.holds or control.certification.certifies or is_unplanned
        membership.reads_adverts = is_watching or self._onlooker.asks_for_adverts

    async def _see_to_certificates(self) -> None:
        control = self._control
        if control.certification.certifies:
            plan = control.plan_store.plan or Plan(())
            planned = {shard.peer for _, shard in plan.shards()}
            control.certification.note_service(control.membership, planned)
        await control.certification.seek(control.membership)

    async def _hear_news(self, peer: str, _payload: bytes) -> bytes:
        if self.may_hurry(peer):
            self._news.set()
            self._look_quickly(NEWS_SECONDS)
        return b""


def _now() -> float:
    return time.monotonic()
