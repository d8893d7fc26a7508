"""PlanStore: fetches the latest plan, accepts it under a fence of terms, hands copies on."""

import asyncio
import json
import logging
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path

from node.control.membership import ALIVE_SECONDS, Membership
from node.control.next_plan import PlanDocument
from swarm.election import PlanOrder, is_credible
from swarm.errors import BadInput, PeerError, RemoteProtocolError, SwarmError
from swarm.p2p.channel import Channel
from swarm.p2p.plan_document import QUESTION, digest_of, fetch_document, read_own
from swarm.plan import Assignment, Pipeline, Plan
from swarm.records import TERM_CAP, Capability, PlanRef

logger = logging.getLogger(__name__)

COPIES = 8  # documents kept for others
RECALL_PEERS = 8  # asked at a time for the plan that we followed before a restart


class TermFence:
    """The latest accepted plan by swarm, on disk before anyone hears of it; it only ever grows."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "accepted.json"
        self._orders = self._read()

    def order_of(self, swarm: str) -> PlanOrder | None:
        """The latest accepted plan of a swarm."""
        return self._orders.get(swarm)

    def accept(self, swarm: str, order: PlanOrder, *, common_term: int = 0) -> bool:
        """Persist `order` and return True, or return False if it is not later than the last.

        `common_term` is what those follow who may plan and answered us: who was away for long may
        catch up with them.
        Raises BadInput if the disk takes nothing in; the order is not accepted then.
        """
        last = self.order_of(swarm)
        verified = max(last.term if last else 0, common_term)
        if (last and order <= last) or not is_credible(order.term, verified):
            return False
        orders = self._orders | {swarm: order}
        self._write(orders)
        self._orders = orders
        return True

    def require_disk(self) -> None:
        """Write again what is known; raises BadInput if the disk takes nothing in."""
        self._write(self._orders)

    def _write(self, orders: dict[str, PlanOrder]) -> None:
        fresh = self._path.with_suffix(".new")
        try:
            with fresh.open("w") as file:
                json.dump({swarm: [o.term, o.rank, o.digest] for swarm, o in orders.items()}, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            raise BadInput(
                f"{self._path} cannot be written: {error}.", "Free the disk, or change --state."
            ) from error

    def _read(self) -> dict[str, PlanOrder]:
        try:
            found = json.loads(self._path.read_text())
            orders = {swarm: _stored_order(entry) for swarm, entry in found.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError) as error:
            raise BadInput(
                f"{self._path} is damaged: {error}.", "Delete it, or choose another --state."
            ) from error
        return {swarm: order for swarm, order in orders.items() if self._is_sane(swarm, order)}

    def _is_sane(self, swarm: str, order: PlanOrder) -> bool:
        """Whether a later plan than this one can travel; such terms were believed once."""
        if order.term < TERM_CAP:
            return True
        logger.warning(
            "%s: term %d of swarm %s is absurd and ignored; any plan of its planner is taken",
            self._path,
            order.term,
            swarm,
        )
        return False


class PlanStore:
    """The accepted plan, and the documents that others may ask for."""

    def __init__(
        self,
        swarm: str,
        folder: Path,
        channel: Channel,
        *,
        problem_of: Callable[[PlanDocument, Mapping[str, Capability]], str] = lambda *_: "",
    ) -> None:
        """`problem_of` says what a plan demands that these peers cannot do; empty if nothing."""
        self._problem_of = problem_of
        self._refused = ""  # digest of the last plan that was
        self._swarm = swarm
        self._fence = TermFence(folder)
        self._channel = channel
        self._copies: dict[str, bytes] = {}
        self._taken: PlanOrder | None = None  # of the accepted document
        self._parts_of: PlanDocument | None = None  # the plan of which these are
        self._parts: dict[str, Assignment | None] = {}
        self.accepted: PlanDocument | None = None
        self.own_parts: dict[str, Assignment] = {}  # by device: taken up while nobody plans
        channel.answer(QUESTION, self._answer)

    @property
    def term(self) -> int:
        """The term of the latest plan that this node ever accepted in this swarm."""
        return self.order.term if self.order else 0

    @property
    def order(self) -> PlanOrder | None:
        """Which plan that was: persisted before anybody hears of it."""
        return self._fence.order_of(self._swarm)

    @property
    def plan(self) -> Plan | None:
        """The accepted plan, if its text is known."""
        return self.accepted.plan if self.accepted else None

    def put(self, data: bytes) -> str:
        """Keep a document for others; returns its digest."""
        digest = digest_of(data)
        self._copies[digest] = data
        for old in list(self._copies)[:-COPIES]:
            del self._copies[old]
        return digest

    def require_disk(self) -> None:
        """Raise BadInput if the fence cannot be written: then no plan could be voted for."""
        self._fence.require_disk()

    def propose(self, document: PlanDocument, rank: int, *, common_term: int = 0) -> PlanRef:
        """Vote for a plan of our own, on disk before anyone hears of it; raises SwarmError.

        A planner that restarts between the two would give one term two plans. Whom the others
        follow (`common_term`) may be far above what we have accepted: we were away.
        """
        data = document.to_bytes()
        reference = PlanRef(document.term, rank, self.put(data), len(data))
        if not self._fence.accept(self._swarm, _order_of(reference), common_term=common_term):
            raise SwarmError(f"A later plan than our own of term {document.term} is accepted.")
        return reference

    def assignment_of(self, device: str) -> Assignment | None:
        """The part of one of our devices in the accepted plan, or what it took up without one."""
        if self._parts_of is not self.accepted:
            self._parts_of, self._parts = self.accepted, {}
        if device not in self._parts:  # a device is asked for five times a second
            self._parts[device] = self._found_part(device)
        return self._parts[device] or self.own_parts.get(device)

    def _found_part(self, device: str) -> Assignment | None:
        stage = self.plan.stage_of(device) if self.plan else None
        if stage is None:
            return None
        return Assignment(stage, [shard.device for shard in stage.shards].index(device))

    def pipeline_of(self, device: str) -> Pipeline | None:
        """The pipeline of the accepted plan in which one of our devices has a part."""
        lines = self.plan.pipelines if self.plan else ()
        for pipeline in lines:
            if any(shard.device == device for s in pipeline.stages for shard in s.shards):
                return pipeline
        return None

    async def adopt_latest(self, membership: Membership) -> bool:
        """Accept the plan of whoever holds the planner's lease; True if that changed anything."""
        found = membership.offer()
        if found is None or not self._is_wanted(_order_of(found[1])):
            return False
        return await self._adopt(*found, membership)

    async def recall(self, membership: Membership) -> None:
        """Take up the plan that we voted for before a restart, from one of those that follow it.

        Its digest is in our fence, so it does not matter who hands it on.
        """
        order = self._fence.order_of(self._swarm)
        if self.accepted is not None or order is None:
            return
        followers = membership.followers_of(order.term)
        asked = random.sample(followers, min(RECALL_PEERS, len(followers)))
        copies = await asyncio.gather(*(self._copy_of(order, peer) for peer in asked))
        if data := next(filter(None, copies), b""):
            self._take_up(order, data, membership)

    async def _copy_of(self, order: PlanOrder, peer: str) -> bytes:
        try:
            return await fetch_document(
                self._channel, peer, order.digest, timeout_seconds=ALIVE_SECONDS
            )
        except (PeerError, RemoteProtocolError, ValueError) as error:
            logger.debug("%s does not hand on the plan: %s", peer, error)
            return b""

    def _take_up(self, order: PlanOrder, data: bytes, membership: Membership) -> None:
        try:
            document = PlanDocument.of_bytes(data)
        except ValueError as error:  # of another version of the program
            logger.info("the plan of term %d cannot be taken up again: %s", order.term, error)
            return
        if not self._problem_of(document, membership.known):
            logger.info("took up the plan of term %d again", order.term)
            self.put(data)
            self.accepted, self._taken = document, order

    def _is_wanted(self, order: PlanOrder) -> bool:
        known = self._fence.order_of(self._swarm)
        return known is None or order > known or self._is_known_by_name(order)

    def _is_known_by_name(self, order: PlanOrder) -> bool:
        """Whether we have voted for this plan but not taken its text: our own, or we restarted."""
        return order == self._fence.order_of(self._swarm) and order != self._taken

    async def _adopt(self, planner: str, reference: PlanRef, membership: Membership) -> bool:
        try:
            data = await self._data_of(planner, reference.digest)
            document = read_own(data, PlanDocument.of_bytes, planner, reference.term)
        except (PeerError, RemoteProtocolError, ValueError) as error:
            logger.info("the plan of %s cannot be had: %s", planner, error)
            return False
        if problem := self._problem_of(document, membership.known):
            self._refuse(planner, reference, problem)
            membership.read_soon()  # it may be our view that is old
            return False
        order, trusted = _order_of(reference), membership.trusted_term
        is_known = self._is_known_by_name(order)
        if not is_known and not self._fence.accept(self._swarm, order, common_term=trusted):
            return False
        logger.info("accepted the plan of %s, term %d", planner, reference.term)
        self.put(data)
        self.accepted, self._taken = document, order
        return True

    def _refuse(self, planner: str, reference: PlanRef, problem: str) -> None:
        """Say why a plan is not followed, once: it is looked at again while it is on offer."""
        if self._refused != reference.digest:
            self._refused = reference.digest
            logger.warning("the plan of %s is not followed: %s", planner, problem)

    async def _data_of(self, planner: str, digest: str) -> bytes:
        copy = self._copies.get(digest)
        return copy or await fetch_document(self._channel, planner, digest)

    async def _answer(self, _peer: str, payload: bytes) -> bytes:
        copy = self._copies.get(payload[:64].decode("ascii", "replace"))
        if copy is None:
            raise BadInput("This plan is not here.", "Read the board for the latest one.")
        return copy


def _order_of(reference: PlanRef) -> PlanOrder:
    return PlanOrder(reference.term, reference.rank, reference.digest)


def _stored_order(entry: object) -> PlanOrder:
    match entry:
        case [int(term), int(rank), str(digest)]:
            return PlanOrder(term, rank, digest)
    raise ValueError("an entry is not [term, rank, digest]")
