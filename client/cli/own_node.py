"""OwnView: a swarm as the node on this machine sees it, at once and without a network of ours."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from client.routing.live_plan import LivePlan
from swarm.commands.control_socket import LocalNode, local_nodes
from swarm.errors import SwarmError
from swarm.formatting import printable
from swarm.records import Record, record_of_map

R = TypeVar("R", bound=Record)
SHOWN = 200  # characters of what a node says of itself

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OwnView:
    """What a node has answered; it is of our own user, and still may be of another version."""

    folder: str  # the name of the node's
    facts: Mapping[str, Any]
    records: Mapping[str, Any]

    def read(self, kind: type[R]) -> dict[str, R]:
        """The records of a kind on the node's board, by peer; raises ValueError."""
        found = self.records.get(kind.KEY)
        if not isinstance(found, dict):
            raise ValueError(f"there are no records of kind {kind.KEY}")
        return {str(peer): cast("R", record_of_map(kind, each)) for peer, each in found.items()}

    @property
    def live(self) -> LivePlan | None:
        """The plan that the node follows; raises ValueError."""
        data = self.facts.get("plan")
        return LivePlan.of_bytes(data) if data else None

    @property
    def words(self) -> str:
        """What the node is at, in one line."""
        paused = self.facts.get("paused", "")
        devices = self.facts.get("devices", [])
        held_by = (each for each in devices if isinstance(each, dict))
        doing = ", ".join(f"device {d.get('index')} {d.get('holds')}" for d in held_by)
        now = f"paused ({paused}); `swarm resume` ends it" if paused else doing or "it is starting"
        return printable(f"{self.folder}: {now}; {self.facts.get('sessions', 0)} sessions", SHOWN)

    def to_json(self) -> dict[str, Any]:
        """What the node says of itself, in plain values."""
        plain = {name: value for name, value in self.facts.items() if name != "plan"}
        return {"node": self.folder, **plain}


def own_view(state: Path, swarm: str) -> OwnView | None:
    """What a node of this state folder in this swarm sees; None where none runs, or can tell."""
    views = (_view_of(node) for node in local_nodes(state))
    return next((view for view in views if view and view.facts.get("swarm") == swarm), None)


def _view_of(node: LocalNode) -> OwnView | None:
    try:
        answer = node.ask("status")
    except SwarmError as error:
        logger.info("%s tells nothing: %s", node.folder.name, error)
        return None
    facts, records = answer.get("node"), answer.get("records")
    if not isinstance(facts, dict) or not isinstance(records, dict):
        return None
    return OwnView(node.folder.name, facts, records)
