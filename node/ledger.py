"""The ledger: the latest plan that this node accepted, on disk before anyone hears of it."""

import json
import os
from pathlib import Path

from planner.election import PlanOrder, is_later
from swarm.errors import BadInput


class Ledger:
    """Accepted plan orders by swarm, in one small JSON file; they only ever grow."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "accepted.json"
        self._orders = self._read()

    def order_of(self, swarm: str) -> PlanOrder | None:
        """The latest accepted plan of a swarm."""
        found = self._orders.get(swarm)
        return PlanOrder(int(found[0]), int(found[1]), str(found[2])) if found else None

    def accept(self, swarm: str, order: PlanOrder) -> bool:
        """Persist `order` and return True, or return False if it is not later than the last."""
        if not is_later(order, self.order_of(swarm)):
            return False
        self._orders[swarm] = [order.term, order.rank, order.digest]
        fresh = self._path.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(self._orders, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        return True

    def _read(self) -> dict[str, list[int | str]]:
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise BadInput(
                f"{self._path} is damaged: {error}.", "Delete it, or choose another --state."
            ) from error
        return dict(found)
