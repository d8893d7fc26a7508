"""LeaderElection: claims, renews and yields the planner's lease, as the election's rules say."""

import logging
import math
import time

from node.control.election_policy import (
    Act,
    Claim,
    ElectionDuty,
    ElectionFacts,
    Renew,
    StandBy,
    Yield,
    next_election_duty,
)
from node.control.membership import Membership
from swarm.dht.board import Board
from swarm.election import LEASE_SECONDS, TERM_JUMP, may_act
from swarm.errors import SwarmError
from swarm.records import Lease
from swarm.trust.network_clock import CLOCK

logger = logging.getLogger(__name__)

AWAY_SECONDS = 60.0  # after a planner that could not plan stood down, the first time in a row
AWAY_CAP_SECONDS = 1800.0


class LeaderElection:
    """Our own part in the election of the planner."""

    def __init__(self, me: str, board: Board, membership: Membership) -> None:
        self._me = me
        self._board = board
        self._membership = membership
        self._claimed_at: float | None = None
        self._confirmed_at = -math.inf
        self._away_until = -math.inf  # we stood down
        self._refusals = 0  # in a row: how often we had to
        self.term = 0

    @property
    def holds(self) -> bool:
        """Whether we hold the lease, settled or not."""
        return self._claimed_at is not None

    @property
    def rank(self) -> int:
        """Our place among the candidates; behind all of them if we are none."""
        ranking = self._membership.ranking()
        return ranking.index(self._me) if self._me in ranking else len(ranking)

    async def pursue(self) -> bool:
        """Do the next duty of the election; True while we may plan."""
        duty = next_election_duty(self._facts(), self.term)
        await self._do(duty)
        return isinstance(duty, Act | Renew)

    async def raise_term(self, followed: int = 0) -> int:
        """Renew the lease under a new term, for a new plan; raises SwarmError if it has run out.

        The term is above `followed` too, or as near to it as others believe.
        """
        if not self.holds or not may_act(time.monotonic(), self._confirmed_at):
            raise SwarmError("The planner's lease ran out while the plan was made.")
        verified = self._membership.trusted_term
        own = max(self.term, self._membership.term)
        self.term = max(own + 1, min(followed + 1, verified + TERM_JUMP))
        await self._publish()
        return self.term

    async def resign(self) -> None:
        """Let the lease go, because we are leaving."""
        if self.holds:
            self._give_up()
            await self._board.publish(Lease(self.term, CLOCK.now(), self._proof))

    async def stand_down(self) -> None:
        """Let the lease go, because we cannot plan now, and stand again only after a while."""
        pause = min(AWAY_SECONDS * 2.0**self._refusals, AWAY_CAP_SECONDS)
        self._refusals += 1
        self._away_until = time.monotonic() + pause
        logger.warning("resigning as the planner; standing again in %.0f s", pause)
        await self.resign()

    def note_success(self) -> None:
        """A plan of ours was voted for: what kept us from planning is over."""
        self._refusals = 0

    def _facts(self) -> ElectionFacts:
        ranking = self._membership.ranking()
        stands = self._me in ranking and time.monotonic() >= self._away_until
        return ElectionFacts(
            me=self._me,
            now=time.monotonic(),
            rank=ranking.index(self._me) if stands else None,
            holders=self._membership.holders(),
            term=self._membership.term,
            claimed_at=self._claimed_at,
            confirmed_at=self._confirmed_at,
            vacant_since=self._membership.vacant_since,
        )

    async def _do(self, duty: ElectionDuty) -> None:
        match duty:
            case Claim(term=term):
                logger.info("claiming the planner's lease under term %d", term)
                self.term, self._claimed_at = term, time.monotonic()
                self._confirmed_at = -math.inf  # an earlier lease confirms nothing
                await self._renew()
            case Renew():
                await self._renew()
            case Yield():
                logger.info("no longer the planner (term %d)", self.term)
                self._give_up()
            case StandBy() | Act():
                return

    async def _renew(self) -> None:
        try:
            await self._publish()
        except SwarmError as error:  # the lease runs on until may_act says no
            logger.warning("the lease was not renewed: %s", error)

    async def _publish(self) -> None:
        sent = time.monotonic()
        lease = Lease(self.term, CLOCK.now() + LEASE_SECONDS, self._proof)
        await self._board.publish(lease)
        self._confirmed_at = sent
        self._membership.own_lease = lease

    def _give_up(self) -> None:
        self._claimed_at = self._membership.own_lease = None

    @property
    def _proof(self) -> bytes:
        return self._membership.own.proof
