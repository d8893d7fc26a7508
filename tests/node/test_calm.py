"""When a node is calm enough for what may wait: it serves, and nothing starts, loads or is lost."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.node import Node
from swarm.testing.memory_network import MemoryWorld
from tests.node.nodes import node_of

SERVED = SimpleNamespace(ready=True)
LOADED_FOR = SimpleNamespace(ready=False)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = node_of(MemoryWorld(), "ada", tmp_path, [])
    made._plan_store = _any(accepted=object())
    return made


def _any(**facts: object) -> Any:
    return SimpleNamespace(**facts)


def device(shard_state: Any, *, has_ended: bool = False) -> Any:
    is_ready = shard_state is not None and shard_state.ready
    worker = _any(ended=_any(is_set=lambda: has_ended))
    return _any(shard_state=shard_state, shard=object() if is_ready else None, worker=worker)


def test_a_node_that_serves_is_calm_even_if_the_plan_has_no_part_for_another_device(
    node: Node,
) -> None:
    node._devices.by_index = {0: device(SERVED), 1: device(None)}
    assert node.is_calm()


@pytest.mark.parametrize(
    "others",
    [[], [device(None)], [device(SERVED), device(LOADED_FOR)], [device(SERVED, has_ended=True)]],
    ids=["no device yet", "nothing to serve", "a shard loads", "a worker is lost"],
)
def test_it_is_not_while_there_is_something_to_do(node: Node, others: list[Any]) -> None:
    node._devices.by_index = dict(enumerate(others))
    assert not node.is_calm()


def test_it_is_not_before_there_is_a_plan(node: Node) -> None:
    node._devices.by_index = {0: device(SERVED)}
    node._plan_store = _any(accepted=None)
    assert not node.is_calm()
