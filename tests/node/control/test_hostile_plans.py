"""Plans and records of strangers cost a node a look at them, and nothing else."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from node.control.board_watcher import BoardWatcher
from node.node import Node
from swarm.election import LEASE_SECONDS
from swarm.errors import Unreachable
from swarm.records import Lease, PlanRef
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.trust.network_clock import CLOCK
from tests.node.memberships import SPEC, capability_of
from tests.node.nodes import node_of

EVE = peer_named("eve")


async def offer(world: MemoryWorld, data: bytes, term: int) -> None:
    """Let Eve, a member who holds the lease, announce and hand out these bytes as a plan."""
    channel = world.channel(EVE)

    async def give(_peer: str, _payload: bytes) -> bytes:
        return data

    for question in ("plan", "alive", "news"):
        channel.answer(question, give)
    await world.board(EVE).publish(capability_of())
    await world.board(EVE).publish(Lease(term, CLOCK.now() + LEASE_SECONDS))
    await world.board(EVE).publish(PlanRef(term, 0, hashlib.sha256(data).hexdigest(), len(data)))


def document(**words: Any) -> bytes:
    """An empty plan in words that no planner of ours would use."""
    plan: dict[str, Any] = {"pipelines": []}
    values = {"plan": plan, "term": 5, "planner": EVE, "model": SPEC.digest} | words
    return json.dumps(values).encode()


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(10):
            await story()

    asyncio.run(whole())


def test_a_plan_in_plain_words_is_followed_and_its_reason_said(tmp_path: Path) -> None:
    lines: list[str] = []

    async def story() -> None:
        world = MemoryWorld()
        await offer(world, document(reason="too few peers"), 5)
        node = node_of(world, "me", tmp_path, lines)
        await node._board_watcher.look()

    run(story)
    assert lines == ["waiting: too few peers"]


@pytest.mark.parametrize("reason", ["\ud800", "\x1b[2J", "\x9b31m", "a\nb"])
def test_a_plan_with_words_that_no_terminal_can_show_is_not_followed(
    tmp_path: Path, reason: str
) -> None:
    lines: list[str] = []

    async def story() -> None:
        world = MemoryWorld()
        await offer(world, document(reason=reason), 5)
        node = node_of(world, "me", tmp_path, lines)
        await node._board_watcher.look()
        assert node._plan_store.accepted is None

    run(story)
    assert lines == []


def test_whatever_ends_a_look_the_node_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("swarm.task_set.PAUSE_SECONDS", 0.0)
    looks: list[int] = []

    async def story() -> None:
        world = MemoryWorld()
        node = node_of(world, "me", tmp_path, [])
        enough = asyncio.Event()

        async def stumble(_watcher: BoardWatcher) -> None:
            looks.append(1)
            if len(looks) == 3:
                enough.set()
            raise RecursionError("of a kind that nobody thought of")

        monkeypatch.setattr(BoardWatcher, "look", stumble)
        monkeypatch.setattr(Node, "_daemon_given_up", lambda _node: _after(enough))
        with pytest.raises(Unreachable, match="p2pd"):
            await node.run([], asyncio.Event())

    with caplog.at_level(logging.ERROR):
        run(story)
    assert len(looks) >= 3
    assert "of a kind that nobody thought of" in caplog.text


async def _after(event: asyncio.Event) -> None:
    await event.wait()
    raise Unreachable("The network daemon p2pd ended.")
