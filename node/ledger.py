"""The ledger: the latest plan that this node accepted, on disk before anyone hears of it."""

import json
import os
from pathlib import Path

from planner.election import PlanOrder, is_credible, is_later
from swarm.errors import BadInput


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

        `common_term` is what most others follow: who was away for long may catch up with them.
        Raises BadInput if the disk takes nothing in; the order is not accepted then.
        """
        last = self.order_of(swarm)
        catches_up = last and order > last and is_credible(order.term, common_term)
        if not is_later(order, last) and not catches_up:
            return False
        orders = self._orders | {swarm: order}
        try:
            self._write(orders)
        except OSError as error:
            raise BadInput(
                f"{self._path} cannot be written: {error}.", "Free the disk, or change --state."
            ) from error
        self._orders = orders
        return True

    def _write(self, orders: dict[str, PlanOrder]) -> None:
        fresh = self._path.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump({swarm: [o.term, o.rank, o.digest] for swarm, o in orders.items()}, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)

    def _read(self) -> dict[str, PlanOrder]:
        try:
            found = json.loads(self._path.read_text())
            return {swarm: _order_of(entry) for swarm, entry in found.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError) as error:
            raise BadInput(
                f"{self._path} is damaged: {error}.", "Delete it, or choose another --state."
            ) from error


def _order_of(entry: object) -> PlanOrder:
    match entry:
        case [int(term), int(rank), str(digest)]:
            return PlanOrder(term, rank, digest)
    raise ValueError("an entry is not [term, rank, digest]")
