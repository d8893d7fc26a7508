"""Membership: who is alive and what they offer, by the board's records and their own answers.

Records say what a peer claims. Who answers our own questions counts for more: only such peers are
ranked and planned for, so that records of nobody delay nothing.
"""

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import msgpack

from node.control.election_policy import Holder
from swarm.dht.board import Board
from swarm.election import (
    COMMON_TERM_CAP,
    ERA_SECONDS,
    LEASE_SECONDS,
    SKEW_SECONDS,
    candidates,
    covered_plan,
    is_credible,
    rank,
)
from swarm.errors import PeerError, RemoteProtocolError
from swarm.hardware import Links
from swarm.p2p.channel import Channel
from swarm.plan import Pipeline
from swarm.records import TERM_CAP, Advert, Capability, Lease, PlanRef
from swarm.trust.certificates import PROOF_CAP, PlannerTrust
from swarm.trust.network_clock import CLOCK
from swarm.wire.version import mismatch

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
ALIVE_SECONDS = 2.0  # between questions to a peer that matters, and for its answer
MISSES = 2  # unanswered questions in a row that make a peer lost
AGAIN_SECONDS = 5.0  # between questions to a lost peer whose record is still there, at first
AGAIN_CAP_SECONDS = 600.0  # and after many that it did not answer
LATELY_SECONDS = 30.0  # an answer of that age still shows that a peer is there
POLL_SECONDS = 4.0  # between questions to peers that might plan one day
SELDOM_SECONDS = 60.0  # between questions to peers that may not plan, for a standby
ASKED_AT_ONCE = 16  # peers in one look besides those that matter
ASKED_BY_PLANNER = 128
ABSENT_SECONDS = 20.0  # a record may be missing on the board for so long while its peer answers


@dataclass(slots=True)
class Contact:
    """What our own questions to a peer brought; times are monotonic."""

    misses: int = 0  # in a row
    asked_at: float = -math.inf
    heard_at: float = -math.inf
    term: int = 0  # of the plan that it says it follows
    proof: bytes = b""  # that it may plan

    @property
    def is_lost(self) -> bool:
        """Whether it failed to answer too often."""
        return self.misses >= MISSES

    def is_due(self, now: float) -> bool:
        """Whether a peer that does not answer is asked again: ever later, once it is lost."""
        pause = AGAIN_SECONDS * 2.0 ** min(self.misses - MISSES, 10) if self.is_lost else 0.0
        return now - self.asked_at > min(pause, AGAIN_CAP_SECONDS)


@dataclass(frozen=True, slots=True)
class Standing:
    """What we say of ourselves to whoever asks: the term that we follow, our right to plan."""

    term: int = 0
    proof: bytes = b""

    def to_bytes(self) -> bytes:
        """A short msgpack list; later versions append to it."""
        return bytes(msgpack.packb([self.term, self.proof]))

    @classmethod
    def of_bytes(cls, data: bytes) -> "Standing":
        """Read a stranger's answer; what makes no sense says nothing."""
        try:
            values = msgpack.unpackb(data) if data else []
        except (ValueError, msgpack.UnpackException):
            return cls()
        match values:
            case [int(term), bytes(proof), *_] if 0 <= term <= TERM_CAP and len(proof) <= PROOF_CAP:
                return cls(term, proof)
        return cls()


class Membership:
    """The node's view of the swarm; refreshed by its owner, asked by everybody."""

    def __init__(
        self, swarm: str, digest: str, board: Board, channel: Channel, trust: PlannerTrust
    ) -> None:
        self.me = channel.peer
        self._swarm = swarm
        self._digest = digest
        self._board = board
        self._channel = channel
        self._trust = trust
        self._capabilities: dict[str, Capability] = {}
        self._leases: dict[str, Lease] = {}
        self._plans: dict[str, PlanRef] = {}
        self._adverts: dict[str, Advert] = {}
        self._contacts: dict[str, Contact] = {}
        self._seen_at: dict[str, float] = {}  # when a capability was last on the board
        self._renewed_at: dict[str, float] = {}  # when a lease was first seen as it is
        self._strange: set[int] = set()  # versions of the protocol that we told of
        self._vacant_since = _now()
        self.own = Standing()
        self.own_lease: Lease | None = None  # while we hold it
        self.verified_term = 0  # of the latest plan that we accepted
        self.reads_adverts = False  # whether somebody here wants to know who serves what
        channel.answer("alive", self._say_alive)

    # ------------------------------------------------------------------ who is there

    @property
    def capabilities(self) -> Mapping[str, Capability]:
        """Every peer of our model that has not left and answers when asked."""
        return {
            peer: capability
            for peer, capability in self._capabilities.items()
            if not capability.leaving and self.answers(peer)
        }

    @property
    def present(self) -> Mapping[str, Capability]:
        """Of these peers, those that have answered us lately, and ourselves."""
        return {p: c for p, c in self.capabilities.items() if p == self.me or self.has_heard(p)}

    @property
    def known(self) -> Mapping[str, Capability]:
        """Every peer of our model with a record, whether it answers or not."""
        return self._capabilities

    @property
    def adverts(self) -> Mapping[str, Advert]:
        """What peers say that they serve; read only while somebody wants to know."""
        return self._adverts

    @property
    def has_misses(self) -> bool:
        """Whether a peer that we still count has just failed to answer."""
        there = [p for p, c in self._capabilities.items() if not c.leaving and p in self._contacts]
        return any(0 < self._contacts[peer].misses < MISSES for peer in there)

    def answers(self, peer: str) -> bool:
        """Whether a peer has not failed to answer too often."""
        contact = self._contacts.get(peer)
        return contact is None or not contact.is_lost

    def has_heard(self, peer: str) -> bool:
        """Whether a peer has answered a question of ours lately."""
        contact = self._contacts.get(peer)
        if contact is None or contact.is_lost:
            return False
        return _now() - contact.heard_at < LATELY_SECONDS

    def may_plan(self, peer: str) -> bool:
        """Whether a peer has shown that it may plan in this swarm."""
        if peer == self.me:
            return self._trust.accepts(peer, self.own.proof)
        contact, lease = self._contacts.get(peer), self._leases.get(peer)
        proofs = [contact.proof if contact else b"", lease.proof if lease else b""]
        return any(self._trust.accepts(peer, proof) for proof in proofs)

    def is_serving(self, pipeline: Pipeline) -> bool:
        """Whether every peer of a pipeline is there and every stage of it is advertised."""
        peers = {shard.peer for stage in pipeline.stages for shard in stage.shards}
        served = {
            (peer, stage.start, stage.end)
            for peer, advert in self._adverts.items()
            for stage in advert.stages
            if not advert.leaving
        }
        return peers <= self.capabilities.keys() and all(
            (stage.shards[0].peer, stage.start, stage.end) in served for stage in pipeline.stages
        )

    # ------------------------------------------------------------------ who plans

    @property
    def vacant_since(self) -> float:
        """Since when, on the monotonic clock, no other peer has held a live lease."""
        return self._vacant_since

    def ranking(self) -> list[str]:
        """The candidates for the planner's lease, the first in rank first.

        Only peers that answered us lately and may plan.
        """
        now = CLOCK.now()
        able = {peer: c for peer, c in self.present.items() if self.may_plan(peer)}
        names = candidates(now, able, HEARTBEAT_SECONDS)
        return rank(self._swarm, int(now // ERA_SECONDS), names)

    def holders(self) -> tuple[Holder, ...]:
        """Live leases of other peers that may plan and answered us lately."""
        order = self.ranking()
        return tuple(
            _holder(peer, lease, order)
            for peer, lease in self._leases.items()
            if peer != self.me and self.has_heard(peer) and self._is_live(peer, lease)
            if self.may_plan(peer) and is_credible(lease.term, self.trusted_term)
        )

    @property
    def planner(self) -> str | None:
        """The other peer that plans, if any."""
        best = max(self.holders(), key=lambda holder: holder.order, default=None)
        return best.peer if best else None

    def offer(self) -> tuple[str, PlanRef] | None:
        """The plan that counts: that of the best-ranked holder, if its lease's term covers it."""
        holders = list(self.holders())
        if self.own_lease:
            holders.append(_holder(self.me, self.own_lease, self.ranking()))
        best = max(holders, key=lambda holder: holder.order, default=None)
        reference = covered_plan(self._plans, best.peer, best.term) if best else None
        return (best.peer, reference) if best and reference else None

    @property
    def trusted_term(self) -> int:
        """The term that those further above are held against: ours, or what planners follow.

        Who was away for long catches up with the peers that may plan, answer, and have a plan: the
        term that at least half of them follow, but never so far that no later one could travel.
        """
        followed = sorted(
            contact.term
            for peer, contact in self._contacts.items()
            if contact.term and self.has_heard(peer) and self.may_plan(peer)
        )
        common = followed[(len(followed) - 1) // 2] if followed else 0
        return max(self.verified_term, min(common, COMMON_TERM_CAP))

    @property
    def term(self) -> int:
        """The highest credible term that anybody who may plan speaks of."""
        verified = self.trusted_term
        seen = [lease.term for peer, lease in self._leases.items() if self.may_plan(peer)]
        seen += [ref.term for peer, ref in self._plans.items() if self.may_plan(peer)]
        return max([verified, *(term for term in seen if is_credible(term, verified))])

    def most_follow_later(self, term: int) -> bool:
        """Whether most peers that answer say they follow a later plan than that of a term."""
        followed = [c.term for p, c in self._contacts.items() if self.has_heard(p)]
        return sum(each > term for each in followed) > len(followed) / 2

    def followers_of(self, term: int) -> list[str]:
        """The peers that answer and say they follow the plan of this term."""
        return [p for p, c in self._contacts.items() if c.term == term and self.has_heard(p)]

    @property
    def followed_term(self) -> int:
        """The highest term that any peer which answers says it follows; it may be a lie."""
        return max([c.term for p, c in self._contacts.items() if self.has_heard(p)], default=0)

    # ------------------------------------------------------------------ links

    def bytes_per_second_to(self, peer: str) -> float:
        """What the way to a peer carries, by the receiver's measurement, else by ours.

        Infinite inside one machine, and where nobody has measured.
        """
        own, other = (self._capabilities.get(each) for each in (self.me, peer))
        if own is None or other is None or own.host == other.host:
            return math.inf
        way = Links.of({self.me: own, peer: other}).measured.get(self.me, {}).get(peer)
        return way.bytes_per_second if way else math.inf

    # ------------------------------------------------------------------ looking

    async def refresh(self) -> None:
        """Read the board afresh."""
        capabilities, leases, plans = await asyncio.gather(
            self._board.read(Capability), self._board.read(Lease), self._board.read(PlanRef)
        )
        if self.reads_adverts:
            self._adverts = {
                peer: advert
                for peer, advert in (await self._board.read(Advert)).items()
                if advert.model == self._digest
            }
        same = {p: c for p, c in capabilities.items() if c.model == self._digest}
        same = {p: c for p, c in same.items() if self._speaks_alike(p, c)}
        now = _now()
        self._seen_at |= dict.fromkeys(same, now)
        absent = self._capabilities.keys() - capabilities.keys()
        same |= {peer: self._capabilities[peer] for peer in absent if self._stays(peer)}
        self._note_renewals(leases)
        self._capabilities, self._leases, self._plans = same, leases, plans
        self._forget_who_left()
        self._note_vacancy()

    def note_own(self, capability: Capability) -> None:
        """Our own capability, known before the board has it."""
        self._capabilities[self.me] = capability
        self._seen_at[self.me] = _now()

    def due(self, *, everybody: bool = False) -> list[str]:
        """Whom to ask now whether they are there.

        Holders of leases, and some candidates; with `everybody` all peers that are not lost, and
        not only those that might plan. Strangers that never answered wait for their turn.
        """
        now = _now()
        able_holders = (p for p in self._leases if p in self._capabilities and self.may_plan(p))
        holders = list(islice(able_holders, ASKED_AT_ONCE))  # of whom no stranger takes a place
        there = {
            peer: self._contacts.get(peer, Contact())
            for peer, capability in self._capabilities.items()
            if peer != self.me and not capability.leaving
        }
        met = [p for p, c in there.items() if c.heard_at > -math.inf and not c.is_lost]
        unmet = [p for p, c in there.items() if p not in met and c.is_due(now)]
        if not everybody:
            era = int(CLOCK.now() // ERA_SECONDS)
            able = rank(self._swarm, era, (p for p in met if self.may_plan(p)))[:ASKED_AT_ONCE]
            unmet += [p for p in met if now - there[p].asked_at > SELDOM_SECONDS]
            met = [p for p in able if now - there[p].asked_at > POLL_SECONDS]
        unmet.sort(key=lambda peer: there[peer].asked_at)
        most = ASKED_BY_PLANNER if everybody else ASKED_AT_ONCE
        return list(dict.fromkeys([*holders, *met, *unmet[:most]]))

    async def ask_whether_alive(self, peers: Iterable[str]) -> None:
        """Ask these peers whether they are there; two misses in a row make a peer lost."""
        await asyncio.gather(*(self._ask(peer) for peer in sorted({*peers} - {self.me})))
        self._note_vacancy()

    async def tell_news(self, peers: Iterable[str]) -> None:
        """Let these peers look at the board at once; those that do not answer find out later."""
        await asyncio.gather(*(self._tell(peer) for peer in peers if peer != self.me))

    async def _tell(self, peer: str) -> None:
        with suppress(PeerError, RemoteProtocolError):
            await self._channel.ask(peer, "news", b"", timeout_seconds=ALIVE_SECONDS)

    async def _ask(self, peer: str) -> None:
        contact = self._contacts.setdefault(peer, Contact())
        is_early = contact.is_lost and not contact.is_due(_now())  # who holds a lease always is
        contact.asked_at = _now()
        try:
            answer = await self._channel.ask(peer, "alive", b"", timeout_seconds=ALIVE_SECONDS)
        except (PeerError, RemoteProtocolError):
            contact.misses += not is_early
            return
        standing = Standing.of_bytes(answer)
        contact.misses, contact.heard_at = 0, _now()
        contact.term, contact.proof = standing.term, standing.proof

    async def _say_alive(self, peer: str, _payload: bytes) -> bytes:
        if (contact := self._contacts.get(peer)) and contact.is_lost:
            contact.misses = MISSES  # it is back, or the way to it is: ask it soon
        return self.own.to_bytes()

    def _speaks_alike(self, peer: str, capability: Capability) -> bool:
        """Whether a peer's protocol is near enough to ours; says so once if it is not."""
        problem = mismatch(capability.protocol)
        if problem and capability.protocol not in self._strange and len(self._strange) < 4:
            self._strange.add(capability.protocol)
            logger.warning("peer %s is left out. %s", peer, problem)
        return not problem

    def _stays(self, peer: str) -> bool:
        """Whether a peer whose record is missing is there all the same: reads may be incomplete."""
        if self._capabilities[peer].leaving or not self.has_heard(peer):
            return False
        return _now() - self._seen_at.get(peer, -math.inf) < ABSENT_SECONDS

    def _is_live(self, peer: str, lease: Lease) -> bool:
        """Whether a lease is not over, by its own word and by our monotonic clock."""
        age = _now() - self._renewed_at.get(peer, -math.inf)
        return lease.until > CLOCK.now() and age < LEASE_SECONDS + SKEW_SECONDS

    def _note_renewals(self, leases: Mapping[str, Lease]) -> None:
        fresh = [peer for peer, lease in leases.items() if self._leases.get(peer) != lease]
        self._renewed_at |= dict.fromkeys(fresh, _now())

    def _forget_who_left(self) -> None:
        """Keep nothing of peers that are not on the board any more."""
        here = self._capabilities.keys() | self._leases.keys()
        self._contacts = {p: c for p, c in self._contacts.items() if p in here}
        self._seen_at = {p: at for p, at in self._seen_at.items() if p in here}
        self._renewed_at = {p: at for p, at in self._renewed_at.items() if p in self._leases}

    def _note_vacancy(self) -> None:
        if self.holders():
            self._vacant_since = _now()


def _holder(peer: str, lease: Lease, ranking: list[str]) -> Holder:
    place = ranking.index(peer) if peer in ranking else len(ranking)
    return Holder(peer, lease.term, place)


def _now() -> float:
    return time.monotonic()
