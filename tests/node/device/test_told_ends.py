"""What a node says when a device no longer holds its shard: lost, given up, or moved on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swarm.testing.memory_network import MemoryWorld
from tests.node.nodes import node_of

LOST = "lost: the shard of device 0; loading again when planned"
RELEASED = "released: device 0 no longer holds layers"


@pytest.mark.parametrize(
    ("has_failed", "assigned", "reason", "told"),
    [
        (True, True, "", LOST),
        (True, False, "3 GB are missing", LOST),
        (False, False, "3 GB are missing", f"{RELEASED}: 3 GB are missing"),
        (False, False, "", f"{RELEASED}, the plan has no part for it"),
        (False, True, "", None),
    ],
)
def test_the_end_of_a_shard_is_told_as_what_it_is(
    tmp_path: Path, has_failed: bool, assigned: bool, reason: str, told: str | None
) -> None:
    lines: list[str] = []
    node = node_of(MemoryWorld(), "me", tmp_path, lines)
    node._plan_store = SimpleNamespace(  # type: ignore[assignment]
        assignment_of=lambda _id: "a part" if assigned else None,
        accepted=SimpleNamespace(reason=reason),
    )
    device: Any = SimpleNamespace(index=0, id="me/0", shard_state=None, has_failed=has_failed)
    ready = {0: "group"}
    node._show_load(device, ready)
    assert lines == ([told] if told else [])
    assert ready == {}
