"""The plan shelf: fetches the latest plan, accepts it under the ledger's fence, hands copies on."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path

from node.control.ledger import Ledger
from node.control.membership import ALIVE_SECONDS, Neighbourhood
from node.control.next_plan import PlanDocument, digest_of
from swarm.election import PlanOrder
from swarm.errors import BadInput, PeerError, RemoteProtocolError, SwarmError
from swarm.p2p.channel import Channel
from swarm.plan import Assignment, Pipeline
from swarm.records import Capability, PlanRef

logger = logging.getLogger(__name__)

COPIES = 8  # documents kept for others
DOCUMENT_CAP = 1 << 20  # bytes
RECALL_PEERS = 8  # asked at a time for the plan that we followed before a restart


class PlanShelf:
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
        self._ledger = Ledger(folder)
        self._channel = channel
        self._copies: dict[str, bytes] = {}
        self._taken: PlanOrder | None = None  # of the accepted document
        self.accepted: PlanDocument | None = None
        channel.answer("plan", self._answer)

    @property
    def term(self) -> int:
        """The term of the latest plan that this node ever accepted in this swarm."""
        order = self._ledger.order_of(self._swarm)
        return order.term if order else 0

    def put(self, data: bytes) -> str:
        """Keep a document for others; returns its digest."""
        digest = digest_of(data)
        self._copies[digest] = data
        for old in list(self._copies)[:-COPIES]:
            del self._copies[old]
        return digest

    def require_disk(self) -> None:
        """Raise BadInput if the ledger cannot be written: then no plan could be voted for."""
        self._ledger.require_disk()

    def propose(self, document: PlanDocument, rank: int, *, common_term: int = 0) -> PlanRef:
        """Vote for a plan of our own, on disk before anyone hears of it; raises SwarmError.

        A planner that restarts between the two would give one term two plans. Whom the others
        follow (`common_term`) may be far above what we have accepted: we were away.
        """
        data = document.to_bytes()
        reference = PlanRef(document.term, rank, self.put(data), len(data))
        if not self._ledger.accept(self._swarm, _order_of(reference), common_term=common_term):
            raise SwarmError(f"A later plan than our own of term {document.term} is accepted.")
        return reference

    def assignment_of(self, device: str) -> Assignment | None:
        """The part of one of our devices in the accepted plan."""
        if self.accepted is None:
            return None
        stage = self.accepted.plan.stage_of(device)
        if stage is None:
            return None
        return Assignment(stage, [shard.device for shard in stage.shards].index(device))

    def pipeline_of(self, device: str) -> Pipeline | None:
        """The pipeline of the accepted plan in which one of our devices has a part."""
        lines = self.accepted.plan.pipelines if self.accepted else ()
        for pipeline in lines:
            if any(shard.device == device for s in pipeline.stages for shard in s.shards):
                return pipeline
        return None

    async def adopt_latest(self, neighbourhood: Neighbourhood) -> bool:
        """Accept the plan of whoever holds the planner's office; True if that changed anything."""
        found = neighbourhood.offer()
        if found is None or not self._is_wanted(_order_of(found[1])):
            return False
        return await self._adopt(*found, neighbourhood)

    async def recall(self, neighbourhood: Neighbourhood) -> None:
        """Take up the plan that we voted for before a restart, from one of those that follow it.

        Its digest is in our ledger, so it does not matter who hands it on.
        """
        order = self._ledger.order_of(self._swarm)
        if self.accepted is not None or order is None:
            return
        followers = neighbourhood.followers_of(order.term)
        asked = random.sample(followers, min(RECALL_PEERS, len(followers)))
        copies = await asyncio.gather(*(self._copy_of(order, peer) for peer in asked))
        if data := next(filter(None, copies), b""):
            self._take_up(order, data, neighbourhood)

    async def _copy_of(self, order: PlanOrder, peer: str) -> bytes:
        name = order.digest.encode()
        try:
            data = await self._channel.ask(peer, "plan", name, timeout_seconds=ALIVE_SECONDS)
        except (PeerError, RemoteProtocolError) as error:
            logger.debug("%s does not hand on the plan: %s", peer, error)
            return b""
        return data if digest_of(data) == order.digest else b""

    def _take_up(self, order: PlanOrder, data: bytes, neighbourhood: Neighbourhood) -> None:
        try:
            document = PlanDocument.of_bytes(data)
        except ValueError as error:  # of another version of the program
            logger.info("the plan of term %d cannot be taken up again: %s", order.term, error)
            return
        if not self._problem_of(document, neighbourhood.known):
            logger.info("took up the plan of term %d again", order.term)
            self.put(data)
            self.accepted, self._taken = document, order

    def _is_wanted(self, order: PlanOrder) -> bool:
        known = self._ledger.order_of(self._swarm)
        return known is None or order > known or self._is_known_by_name(order)

    def _is_known_by_name(self, order: PlanOrder) -> bool:
        """Whether we have voted for this plan but not taken its text: our own, or we restarted."""
        return order == self._ledger.order_of(self._swarm) and order != self._taken

    async def _adopt(self, planner: str, reference: PlanRef, neighbourhood: Neighbourhood) -> bool:
        try:
            data = await self._fetch(planner, reference)
            document = PlanDocument.of_bytes(data)
        except (PeerError, RemoteProtocolError, ValueError) as error:
            logger.info("the plan of %s cannot be had: %s", planner, error)
            return False
        if document.planner != planner or document.term != reference.term:
            logger.warning("%s offers a plan that is not its own", planner)
            return False
        if problem := self._problem_of(document, neighbourhood.known):
            self._refuse(planner, reference, problem)
            return False
        order, trusted = _order_of(reference), neighbourhood.trusted_term
        is_known = self._is_known_by_name(order)
        if not is_known and not self._ledger.accept(self._swarm, order, common_term=trusted):
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

    async def _fetch(self, planner: str, reference: PlanRef) -> bytes:
        if copy := self._copies.get(reference.digest):
            return copy
        data = await self._channel.ask(planner, "plan", reference.digest.encode())
        if digest_of(data) != reference.digest or len(data) > DOCUMENT_CAP:
            raise ValueError("the document is not the one that was announced")
        return data

    async def _answer(self, _peer: str, payload: bytes) -> bytes:
        copy = self._copies.get(payload[:64].decode("ascii", "replace"))
        if copy is None:
            raise BadInput("This plan is not here.", "Read the board for the latest one.")
        return copy


def _order_of(reference: PlanRef) -> PlanOrder:
    return PlanOrder(reference.term, reference.rank, reference.digest)
