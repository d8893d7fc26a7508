"""What a node knows of the others: capabilities, leases and plans on the board, and who answers."""

import asyncio
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

from node.duties import Holder
from planner.election import candidates, is_credible, rank
from swarm.board import Board
from swarm.channel import Channel
from swarm.errors import PeerError, RemoteProtocolError
from swarm.network_clock import CLOCK
from swarm.records import Capability, Lease, PlanRef

HEARTBEAT_SECONDS = 15.0
ERA_SECONDS = 3600.0
ALIVE_SECONDS = 2.0  # between questions to a peer that matters, and for its answer
MISSES = 2  # unanswered questions in a row that make a peer lost
AGAIN_SECONDS = 5.0  # between questions to a lost peer whose record is still there


class Neighbourhood:
    """The node's view of the swarm; refreshed by its owner, asked by everybody."""

    def __init__(self, swarm: str, digest: str, board: Board, channel: Channel) -> None:
        self.me = channel.peer
        self._swarm = swarm
        self._digest = digest
        self._board = board
        self._channel = channel
        self._capabilities: dict[str, Capability] = {}
        self._leases: dict[str, Lease] = {}
        self._plans: dict[str, PlanRef] = {}
        self._misses: dict[str, int] = {}
        self._lost_at: dict[str, float] = {}
        self._vacant_since = _now()
        self.verified_term = 0
        channel.answer("alive", _alive)

    @property
    def capabilities(self) -> Mapping[str, Capability]:
        """Every peer of our model that has not left and answers when asked."""
        return {
            peer: capability
            for peer, capability in self._capabilities.items()
            if not capability.leaving and self.answers(peer)
        }

    @property
    def vacant_since(self) -> float:
        """Since when, on the monotonic clock, no other peer has held a live lease."""
        return self._vacant_since

    @property
    def has_misses(self) -> bool:
        """Whether a peer that we still count has just failed to answer."""
        there = [p for p, c in self._capabilities.items() if not c.leaving]
        return any(0 < self._misses.get(peer, 0) < MISSES for peer in there)

    def answers(self, peer: str) -> bool:
        """Whether a peer has not failed to answer too often."""
        return self._misses.get(peer, 0) < MISSES

    def ranking(self) -> list[str]:
        """The candidates for the planner's office, the first in rank first."""
        now = CLOCK.now()
        names = candidates(now, self.capabilities, HEARTBEAT_SECONDS)
        return rank(self._swarm, int(now // ERA_SECONDS), names)

    def holders(self) -> tuple[Holder, ...]:
        """Live leases of other peers that answer."""
        order = self.ranking()
        return tuple(
            Holder(peer, lease.term, order.index(peer) if peer in order else len(order))
            for peer, lease in self._leases.items()
            if peer != self.me and self.answers(peer) and lease.until > CLOCK.now()
            if is_credible(lease.term, self.verified_term)
        )

    @property
    def planner(self) -> str | None:
        """The other peer that plans, if any."""
        best = max(self.holders(), key=lambda holder: holder.order, default=None)
        return best.peer if best else None

    @property
    def term(self) -> int:
        """The highest credible term that anybody speaks of."""
        seen = [lease.term for lease in self._leases.values()]
        seen += [reference.term for reference in self._plans.values()]
        seen += [capability.term for capability in self._capabilities.values()]
        believed = [term for term in seen if is_credible(term, self.verified_term)]
        return max([self.verified_term, *believed])

    def plans(self) -> dict[str, PlanRef]:
        """The plans on offer, by the peer that made them."""
        return {p: ref for p, ref in self._plans.items() if p in self._capabilities}

    def bytes_per_second_to(self, peer: str) -> float:
        """What the way to a peer carries, by the receiver's measurement, else by ours.

        Infinite inside one machine, and where nobody has measured.
        """
        own, other = (self._capabilities.get(each) for each in (self.me, peer))
        if own is None or other is None or own.host == other.host:
            return math.inf
        received = [link for link in other.links if link.peer == self.me]
        measured = received or [link for link in own.links if link.peer == peer]
        return measured[0].bytes_per_second if measured else math.inf

    async def refresh(self) -> None:
        """Read the board afresh."""
        capabilities, leases, plans = await asyncio.gather(
            self._board.read(Capability), self._board.read(Lease), self._board.read(PlanRef)
        )
        same = {p: c for p, c in capabilities.items() if c.model == self._digest}
        for peer in same:
            if peer not in self._capabilities:
                self._misses.pop(peer, None)
        self._capabilities, self._leases, self._plans = same, leases, plans
        self._note_vacancy()

    def note_own(self, capability: Capability) -> None:
        """Our own capability, known before the board has it."""
        self._capabilities[self.me] = capability

    async def ask_whether_alive(self, peers: list[str]) -> None:
        """Ask these peers whether they are there; two misses in a row make a peer lost.

        Lost peers with a record are asked too, now and then: most have only been slow.
        """
        asked = {*peers, *self._lost()} - {self.me}
        await asyncio.gather(*(self._ask(peer) for peer in sorted(asked)))
        self._note_vacancy()

    async def tell_news(self, peers: Iterable[str]) -> None:
        """Let these peers look at the board at once; those that do not answer find out later."""
        await asyncio.gather(*(self._tell(peer) for peer in peers if peer != self.me))

    async def _tell(self, peer: str) -> None:
        with suppress(PeerError, RemoteProtocolError):
            await self._channel.ask(peer, "news", b"", timeout_seconds=ALIVE_SECONDS)

    async def _ask(self, peer: str) -> None:
        try:
            await self._channel.ask(peer, "alive", b"", timeout_seconds=ALIVE_SECONDS)
        except (PeerError, RemoteProtocolError):
            self._misses[peer] = self._misses.get(peer, 0) + 1
            self._lost_at[peer] = _now()
        else:
            self._misses[peer] = 0

    def _lost(self) -> list[str]:
        there = [p for p, c in self._capabilities.items() if not c.leaving and not self.answers(p)]
        return [peer for peer in there if _now() - self._lost_at[peer] > AGAIN_SECONDS]

    def _note_vacancy(self) -> None:
        if self.holders():
            self._vacant_since = _now()


async def _alive(_peer: str, _payload: bytes) -> bytes:
    return b""


def _now() -> float:
    return time.monotonic()
