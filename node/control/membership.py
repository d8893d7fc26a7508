"""Membership: who is alive and what they offer, by the board's records and their own answers.

Records say what a peer claims. Who answers our own questions counts for more: only such peers are
ranked and planned for, so that records of nobody delay nothing.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice

import msgpack

from node.control.election_policy import Holder
from node.control.failure_detector import (
    ASKED_AT_ONCE,
    CROWD,
    MISSES,
    Contacts,
    asked_by_planner,
    asked_by_standby,
)
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
ABSENT_SECONDS = 20.0  # a record may be missing on the board for so long while its peer answers
VIEW_SECONDS = 5.0  # a view holds for so long, unless something changes
# In a crowd the board is not read as a whole at every look: so long for each peer on it.
STANDBY_READ_SECONDS, PLANNER_READ_SECONDS = 0.01, 0.004
READ_CAP_SECONDS = 15.0  # less than ABSENT_SECONDS
ASKED_TOGETHER = 64  # questions under way at a time
STANDINGS_REMEMBERED, REMEMBERED_BYTES = 256, 1024  # of answers, which come again and again
TOLD_BY_NEWCOMER = 64  # peers that hear of who comes and goes


@dataclass(frozen=True, slots=True)
class Standing:
    """What we say of ourselves to whoever asks: the term that we follow, our right to plan."""

    term: int = 0
    proof: bytes = b""

    def to_bytes(self) -> bytes:
        """A short msgpack list; later versions append to it."""
        return _packed_standing(self.term, self.proof)

    @classmethod
    def of_bytes(cls, data: bytes) -> "Standing":
        """Read a stranger's answer; what makes no sense says nothing."""
        return _read_standing(data) if len(data) < REMEMBERED_BYTES else _standing_of(data)


@dataclass(frozen=True, slots=True)
class View:
    """What follows from records and answers, worked out once for all who ask within a look."""

    capabilities: dict[str, Capability]  # of who has not left and answers
    present: dict[str, Capability]  # of these, who has answered lately, and ourselves
    ranking: list[str]
    common_term: int  # that at least half of those follow who may plan


@dataclass(frozen=True, slots=True)
class Ranked:
    """Who has a record and is not leaving, with their places in rank; and who else that is."""

    staying: dict[str, Capability]
    places: dict[str, int]
    others: dict[str, int]  # the same without ourselves, the best first


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
        self._adverts_at = -math.inf  # when they were asked for
        self._contacts = Contacts()
        self._seen_at: dict[str, float] = {}  # when a capability was last on the board
        self._renewed_at: dict[str, float] = {}  # when a lease was first seen as it is
        self._strange: set[int] = set()  # versions of the protocol that we told of
        self._vacant_since = _now()
        self._read_at = -math.inf  # when all capabilities were read last
        self._changes = 0  # of what the ranking depends on
        self._record_changes = 0
        self._order: tuple[tuple[int, int], Ranked] | None = None
        self._view: tuple[object, View] | None = None  # and what it depends on
        self._last_there: (
            tuple[dict[str, Capability], frozenset[str], dict[str, Capability]] | None
        ) = None
        self._asking = asyncio.Semaphore(ASKED_TOGETHER)
        self.own = Standing()
        self.own_lease: Lease | None = None  # while we hold it
        self.verified_term = 0  # of the latest plan that we accepted
        self.reads_adverts = False  # whether somebody here wants to know who serves what
        channel.answer("alive", self._say_alive)

    # ------------------------------------------------------------------ who is there

    @property
    def capabilities(self) -> Mapping[str, Capability]:
        """Every peer of our model that has not left and answers when asked."""
        return self.view.capabilities

    @property
    def present(self) -> Mapping[str, Capability]:
        """Of these peers, those that have answered us lately, and ourselves."""
        return self.view.present

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
        there = (self._capabilities.get(peer) for peer in self._contacts.missed)
        return any(capability and not capability.leaving for capability in there)

    def answers(self, peer: str) -> bool:
        """Whether a peer has not failed to answer too often."""
        contact = self._contacts.get(peer)
        return contact is None or not contact.is_lost

    def has_heard(self, peer: str) -> bool:
        """Whether a peer has answered a question of ours lately."""
        contact = self._contacts.get(peer)
        return contact is not None and contact.is_heard(_now())

    def may_plan(self, peer: str) -> bool:
        """Whether a peer has shown that it may plan in this swarm."""
        if peer == self.me or self._trust.is_private:  # where no proof is asked for
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

    def served_by_others(self, since: float) -> list[Advert] | None:
        """What others serve that are there and stay, if adverts were read since a moment."""
        if self._adverts_at < since:
            return None
        there, adverts = self.capabilities, self._adverts.items()
        return [a for p, a in adverts if p in there and p != self.me and not a.leaving]

    @property
    def view(self) -> View:
        """What the others make of all this, until something changes."""
        era = int(CLOCK.now() // ERA_SECONDS)
        changes = self._changes, self._record_changes, self._contacts.changes
        facts = changes, _now() // VIEW_SECONDS, era, self.own
        if self._view is None or self._view[0] != facts:
            self._view = facts, self._viewed(era)
        return self._view[1]

    def _ranked(self, era: int) -> Ranked:
        """The peers with a record in order of rank, which changes with who is there and eras."""
        order = self._order
        if order is None or order[0] != (self._record_changes, era):
            staying = {p: c for p, c in self._capabilities.items() if not c.leaving}
            if order and order[0][1] == era and staying.keys() == order[1].places.keys():
                ranked = replace(order[1], staying=staying)
            else:
                places = {p: at for at, p in enumerate(rank(self._swarm, era, staying))}
                others = {peer: at for peer, at in places.items() if peer != self.me}
                ranked = Ranked(staying, places, others)
            order = self._order = (self._record_changes, era), ranked
        return order[1]

    def _there(self, staying: dict[str, Capability]) -> dict[str, Capability]:
        """Who of these is not lost; the same object while nothing changes."""
        lost, last = self._contacts.lost, self._last_there
        if last is None or last[0] is not staying or last[1] != lost:
            there = {p: c for p, c in staying.items() if p not in lost} if lost else staying
            last = self._last_there = staying, lost, there
        return last[2]

    def _viewed(self, era: int) -> View:
        ranked = self._ranked(era)
        there = self._there(ranked.staying)
        heard = self._contacts.heard_lately(_now())
        present = {peer: there[peer] for peer in {*heard, self.me} if peer in there}
        planners = set(filter(self.may_plan, {*heard, self.me}))
        able = {peer: c for peer, c in present.items() if peer in planners}
        names = candidates(CLOCK.now(), able, HEARTBEAT_SECONDS)
        followed = sorted(c.term for p, c in heard.items() if c.term and p in planners)
        common = followed[(len(followed) - 1) // 2] if followed else 0
        return View(there, present, sorted(names, key=ranked.places.__getitem__), common)

    # ------------------------------------------------------------------ who plans

    @property
    def vacant_since(self) -> float:
        """Since when, on the monotonic clock, no other peer has held a live lease."""
        return self._vacant_since

    def ranking(self) -> list[str]:
        """The candidates for the planner's lease, the first in rank first.

        Only peers that answered us lately and may plan.
        """
        return self.view.ranking

    def holders(self) -> tuple[Holder, ...]:
        """Live leases of other peers that may plan and answered us lately."""
        if not self._leases:
            return ()
        order, trusted, me = self.ranking(), self.trusted_term, self.me
        return tuple(
            _holder(peer, lease, order)
            for peer, lease in self._leases.items()
            if peer != me and self.has_heard(peer) and self._is_live(peer, lease)
            if is_credible(lease.term, trusted) and self.may_plan(peer)
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
        return max(self.verified_term, min(self.view.common_term, COMMON_TERM_CAP))

    @property
    def term(self) -> int:
        """The highest credible term that anybody who may plan speaks of."""
        verified = self.trusted_term
        seen = [lease.term for peer, lease in self._leases.items() if self.may_plan(peer)]
        seen += [ref.term for peer, ref in self._plans.items() if self.may_plan(peer)]
        return max([verified, *(term for term in seen if is_credible(term, verified))])

    def most_follow_later(self, term: int) -> bool:
        """Whether most peers that answer say they follow a later plan than that of a term."""
        followed = [c.term for c in self._contacts.heard_lately(_now()).values()]
        return sum(each > term for each in followed) > len(followed) / 2

    def followers_of(self, term: int) -> list[str]:
        """The peers that answer and say they follow the plan of this term."""
        return [p for p, c in self._contacts.heard_lately(_now()).items() if c.term == term]

    @property
    def followed_term(self) -> int:
        """The highest term that any peer which answers says it follows; it may be a lie."""
        return max((c.term for c in self._contacts.heard_lately(_now()).values()), default=0)

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
        """Read leases and plans afresh; in a crowd the records of all peers only now and then."""
        reads_all = _now() - self._read_at >= self._read_pause
        reading = self._board.read(Lease), self._board.read(PlanRef)
        if reads_all:
            leases, plans, _ = await asyncio.gather(*reading, self._read_peers())
        else:
            leases, plans = await asyncio.gather(*reading)
        self._note_renewals(leases)
        proofs = [{peer: each.proof for peer, each in of.items()} for of in (leases, self._leases)]
        self._changes += proofs[0] != proofs[1]
        self._leases, self._plans = leases, plans
        if reads_all:
            self._forget_who_left()
        self._note_vacancy()

    def read_soon(self) -> None:
        """Read the records of all peers at the next look: a plan speaks of one that we missed."""
        self._read_at = -math.inf

    @property
    def _read_pause(self) -> float:
        peers = len(self._capabilities)
        each = PLANNER_READ_SECONDS if self.own_lease else STANDBY_READ_SECONDS
        return min(each * peers, READ_CAP_SECONDS) if peers > CROWD else 0.0

    async def _read_peers(self) -> None:
        capabilities = await self._board.read(Capability)
        if self.reads_adverts:
            asked_at = _now()
            self._adverts = {
                peer: advert
                for peer, advert in (await self._board.read(Advert)).items()
                if advert.model == self._digest
            }
            self._adverts_at = asked_at
        same = {p: c for p, c in capabilities.items() if c.model == self._digest}
        if any(mismatch(protocol) for protocol in {c.protocol for c in same.values()}):
            same = {p: c for p, c in same.items() if self._speaks_alike(p, c)}
        now = _now()
        self._read_at = now
        self._seen_at |= dict.fromkeys(same, now)
        absent = self._capabilities.keys() - capabilities.keys()
        same |= {peer: self._capabilities[peer] for peer in absent if self._stays(peer)}
        self._record_changes += same != self._capabilities
        self._capabilities = same

    def note_own(self, capability: Capability) -> None:
        """Our own capability, known before the board has it."""
        self._seen_at[self.me] = _now()
        if self._capabilities.get(self.me) == capability:
            return
        order = self._order
        self._capabilities[self.me] = capability
        self._record_changes += 1
        if order and order[0][0] == self._record_changes - 1 and not capability.leaving:
            key, ranked = (self._record_changes, order[0][1]), order[1]
            if self.me in ranked.places:  # all stay in their places
                staying = ranked.staying | {self.me: capability}
                self._order = key, replace(ranked, staying=staying)

    def due(self, *, everybody: bool = False) -> list[str]:
        """Whom to ask now whether they are there.

        Holders of leases, and some candidates; with `everybody` all peers that are not lost, and
        not only those that might plan. Strangers that never answered wait for their turn.
        """
        now, era = _now(), int(CLOCK.now() // ERA_SECONDS)
        able_holders = (p for p in self._leases if p in self._capabilities and self.may_plan(p))
        holders = list(islice(able_holders, ASKED_AT_ONCE))  # of whom no stranger takes a place
        others = self._ranked(era).others
        if everybody:
            asked = asked_by_planner(others, self._contacts, now)
        else:
            asked = asked_by_standby(others, self._contacts, now, self.may_plan)
        return list(dict.fromkeys([*holders, *asked]))

    async def ask_whether_alive(self, peers: Iterable[str]) -> None:
        """Ask these peers whether they are there; two misses in a row make a peer lost."""
        await asyncio.gather(*(self._ask(peer) for peer in sorted({*peers} - {self.me})))
        self._note_vacancy()

    async def tell_news(self, peers: Iterable[str]) -> None:
        """Let these peers look at the board at once; those that do not answer find out later."""
        await asyncio.gather(*(self._tell(peer) for peer in peers if peer != self.me))

    async def tell_some(self) -> None:
        """Let who plans, and some others, know that we come or go: in a crowd not everybody."""
        others = [peer for peer in self.capabilities if peer != self.me]
        holders = [peer for peer in self._leases if peer in others]
        some = random.sample(others, min(TOLD_BY_NEWCOMER, len(others)))
        await self.tell_news({*holders[:TOLD_BY_NEWCOMER], *some})

    async def _tell(self, peer: str) -> None:
        async with self._asking:
            await self._tell_one(peer)

    async def _tell_one(self, peer: str) -> None:
        with suppress(PeerError, RemoteProtocolError):
            await self._channel.ask(peer, "news", b"", timeout_seconds=ALIVE_SECONDS)

    async def _ask(self, peer: str) -> None:
        async with self._asking:
            await self._ask_one(peer)

    async def _ask_one(self, peer: str) -> None:
        known, now = self._contacts.get(peer), _now()
        is_early = known is not None and known.is_lost and not known.is_due(now)  # holds a lease
        contact = self._contacts.note_question(peer, now)
        try:
            answer = await self._channel.ask(peer, "alive", b"", timeout_seconds=ALIVE_SECONDS)
        except (PeerError, RemoteProtocolError):
            if not is_early:
                self._contacts.note_silence(peer, contact)
            return
        standing = Standing.of_bytes(answer)
        self._contacts.note_answer(peer, contact, standing.term, standing.proof, _now())

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
        self._renewed_at = {p: at for p, at in self._renewed_at.items() if p in self._leases}
        here = self._capabilities.keys() | self._leases.keys()
        self._contacts.forget_others(here)
        for peer in self._seen_at.keys() - here:
            del self._seen_at[peer]

    def _note_vacancy(self) -> None:
        if self.holders():
            self._vacant_since = _now()


def _standing_of(data: bytes) -> Standing:
    try:
        values = msgpack.unpackb(data) if data else []
    except (ValueError, msgpack.UnpackException):
        return Standing()
    match values:
        case [int(term), bytes(proof), *_] if 0 <= term <= TERM_CAP and len(proof) <= PROOF_CAP:
            return Standing(term, proof)
    return Standing()


_read_standing = lru_cache(STANDINGS_REMEMBERED)(_standing_of)  # peers say the same for minutes


@lru_cache(STANDINGS_REMEMBERED)
def _packed_standing(term: int, proof: bytes) -> bytes:
    return bytes(msgpack.packb([term, proof]))


def _holder(peer: str, lease: Lease, ranking: list[str]) -> Holder:
    place = ranking.index(peer) if peer in ranking else len(ranking)
    return Holder(peer, lease.term, place)


def _now() -> float:
    return time.monotonic()
