"""The plan shelf: fetches the latest plan, accepts it under the ledger's fence, hands copies on."""

import logging
from collections.abc import Callable
from pathlib import Path

from node.duties import Assignment
from node.ledger import Ledger
from node.neighbourhood import Neighbourhood
from node.planning import PlanDocument, digest_of
from planner.election import PlanOrder, is_credible
from swarm.channel import Channel
from swarm.errors import BadInput, PeerError, RemoteProtocolError, SwarmError
from swarm.records import PlanRef

logger = logging.getLogger(__name__)

COPIES = 8  # documents kept for others
TRIES = 3  # offers looked into at a time, the latest first
DOCUMENT_CAP = 1 << 20  # bytes


class PlanShelf:
    """The accepted plan, and the documents that others may ask for."""

    def __init__(
        self,
        swarm: str,
        folder: Path,
        channel: Channel,
        *,
        is_possible: Callable[[PlanDocument], bool] = lambda _document: True,
    ) -> None:
        self._is_possible = is_possible
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

    def propose(self, document: PlanDocument, rank: int) -> PlanRef:
        """Vote for a plan of our own, on disk before anyone hears of it; raises SwarmError.

        A planner that restarts between the two would give one term two plans.
        """
        data = document.to_bytes()
        reference = PlanRef(document.term, rank, self.put(data), len(data))
        if not self._ledger.accept(self._swarm, _order_of(reference)):
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

    async def adopt_latest(self, neighbourhood: Neighbourhood) -> bool:
        """Accept the latest plan on offer; True if that changed anything."""
        common = _common_term(neighbourhood)
        verified = max(self.term, common)
        offers = [o for o in neighbourhood.plans().items() if _is_sound(o[1], verified)]
        offers.sort(key=lambda offer: _order_of(offer[1]), reverse=True)
        for planner, reference in offers[:TRIES]:  # the latest may be a lie that nobody can fetch
            if not self._is_wanted(_order_of(reference)):
                return False
            if await self._adopt(planner, reference, common):
                return True
        return False

    def _is_wanted(self, order: PlanOrder) -> bool:
        known = self._ledger.order_of(self._swarm)
        return known is None or order > known or self._is_known_by_name(order)

    def _is_known_by_name(self, order: PlanOrder) -> bool:
        """Whether we have voted for this plan but not taken its text: our own, or we restarted."""
        return order == self._ledger.order_of(self._swarm) and order != self._taken

    async def _adopt(self, planner: str, reference: PlanRef, common_term: int) -> bool:
        try:
            data = await self._fetch(planner, reference)
            document = PlanDocument.of_bytes(data)
        except (PeerError, RemoteProtocolError, ValueError) as error:
            logger.info("the plan of %s cannot be had: %s", planner, error)
            return False
        if document.planner != planner or document.term != reference.term:
            logger.warning("%s offers a plan that is not its own", planner)
            return False
        if not self._is_possible(document):
            logger.warning("%s offers a plan for another model", planner)
            return False
        order = _order_of(reference)
        is_known = self._is_known_by_name(order)
        if not is_known and not self._ledger.accept(self._swarm, order, common_term=common_term):
            return False
        logger.info("accepted the plan of %s, term %d", planner, reference.term)
        self.put(data)
        self.accepted, self._taken = document, order
        return True

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


def _is_sound(reference: PlanRef, verified: int) -> bool:
    """Whether a stranger's reference can be ordered at all, and is not absurdly far ahead."""
    return reference.rank >= 0 and is_credible(reference.term, verified)


def _common_term(neighbourhood: Neighbourhood) -> int:
    """The term that at least half of the others follow: it fences lies where we know nothing."""
    others = [c.term for p, c in neighbourhood.capabilities.items() if p != neighbourhood.me]
    return sorted(others)[(len(others) - 1) // 2] if others else 0


def _order_of(reference: PlanRef) -> PlanOrder:
    return PlanOrder(reference.term, reference.rank, reference.digest)
