"""The ledger: the latest plan that this node accepted, on disk before anyone hears of it."""

import json
import logging
import os
from pathlib import Path

from swarm.election import PlanOrder, is_credible
from swarm.errors import BadInput
from swarm.records import TERM_CAP

logger = logging.getLogger(__name__)


class Ledger:
    """Accepted plan orders by swarm, in one small JSON file; they only ever grow."""

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
            orders = {swarm: _order_of(entry) for swarm, entry in found.items()}
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


def _order_of(entry: object) -> PlanOrder:
    match entry:
        case [int(term), int(rank), str(digest)]:
            return PlanOrder(term, rank, digest)
    raise ValueError("an entry is not [term, rank, digest]")
