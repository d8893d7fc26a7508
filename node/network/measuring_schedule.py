"""MeasuringSchedule: whose link is measured next, and when; no I/O, no clock.

Everybody measures the peers that follow it in the order of ids, so that the work is spread. Of two
newcomers one waits for the other, since both learn from one exchange.
"""

import math
import random
from bisect import bisect
from collections.abc import Collection
from dataclasses import dataclass, field

from node.network.link_estimates import LinkEstimates

NEIGHBOURS = 8
YIELD_SECONDS = 3.0  # for a peer before us to begin
AGAIN_SECONDS = 3600.0  # after a link was measured: later figures come from what is sent anyway
LOST_SECONDS, LOST_CAP_SECONDS = 10.0, 600.0  # after a failure, and after many
BUSY_CAP_SECONDS = 30.0  # after many refusals: somebody generates a lot
JITTER = 0.5  # a share, either way


@dataclass(slots=True)
class Turn:
    """When a peer is due, as far as that depends on more than its last measurement."""

    not_before: float
    refusals: int = 0
    failures: int = 0


@dataclass(slots=True)
class MeasuringSchedule:
    """Who is due; the owner tells how it went."""

    me: str
    estimates: LinkEstimates
    chance: random.Random = field(default_factory=random.Random)
    turns: dict[str, Turn] = field(default_factory=dict)

    def due(self, peers: Collection[str], now: float) -> str | None:
        """The neighbour to measure now, or None."""
        self.turns = {peer: turn for peer, turn in self.turns.items() if peer in peers}
        for peer in neighbours(self.me, peers):
            wait = 0.0 if self.me < peer else YIELD_SECONDS
            turn = self.turns.setdefault(peer, Turn(now + wait))
            if now >= max(turn.not_before, self._due_again(peer)):
                return peer
        return None

    def measured(self, peer: str, now: float) -> None:
        """It went well; an unconfirmed figure is measured again at once."""
        confirmed = self.estimates.of(peer).is_confirmed
        self.turns[peer] = Turn(now + (self._about(AGAIN_SECONDS) if confirmed else 0.0))

    def refused(self, peer: str, now: float, seconds: float) -> None:
        """Somebody there measures or generates: try again after so long, then ever later."""
        turn = self.turns[peer]
        pause = min(seconds * 2.0 ** min(turn.refusals, 10), BUSY_CAP_SECONDS)
        self.turns[peer] = Turn(now + self._about(pause), turn.refusals + 1, turn.failures)

    def failed(self, peer: str, now: float) -> None:
        """It does not answer: try again, ever later."""
        turn = self.turns[peer]
        pause = min(LOST_SECONDS * 2.0 ** min(turn.failures, 10), LOST_CAP_SECONDS)
        self.turns[peer] = Turn(now + self._about(pause), turn.refusals, turn.failures + 1)

    def _due_again(self, peer: str) -> float:
        """When what the other side has measured with us meanwhile is old."""
        estimate = self.estimates.of(peer)
        pause = AGAIN_SECONDS * (1 - JITTER)
        return estimate.measured_at + pause if estimate.is_confirmed else -math.inf

    def _about(self, seconds: float) -> float:
        return seconds * self.chance.uniform(1 - JITTER, 1 + JITTER)


def neighbours(me: str, peers: Collection[str]) -> list[str]:
    """The peers that follow us in the order of ids, round and round."""
    others = sorted(set(peers) - {me})
    place = bisect(others, me)
    return (others[place:] + others[:place])[:NEIGHBOURS]
