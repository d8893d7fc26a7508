"""BoardWatcher: what a look brings is told, and strangers cannot make it look without end."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.control.board_watcher import NEWS_BURST, BoardWatcher
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.node.nodes import node_of


def test_a_stranger_hurries_a_node_a_few_times_and_a_crowd_not_much_more(tmp_path: Path) -> None:
    async def story() -> None:
        watcher = node_of(MemoryWorld(), "me", tmp_path, [])._board_watcher
        hurried = 0
        for number in range(400):
            await watcher._hear_news(peer_named(f"stranger{number // 100}"), b"")
            hurried += watcher._news.is_set()
            watcher._news.clear()
            if number == 99:
                assert hurried <= NEWS_BURST + 1
        assert NEWS_BURST <= hurried <= 3 * NEWS_BURST + 2

    asyncio.run(story())


@pytest.mark.parametrize("is_new", [True, False])
def test_a_plan_that_is_adopted_at_the_call_of_a_leader_is_told_at_once(is_new: bool) -> None:
    told: list[bool] = []

    async def refresh() -> None:
        """Nobody else is there."""

    async def adopt_latest(_membership: object) -> bool:
        return is_new

    async def story() -> None:
        control: Any = SimpleNamespace(
            membership=SimpleNamespace(refresh=refresh),
            plan_store=SimpleNamespace(adopt_latest=adopt_latest),
        )
        onlooker: Any = SimpleNamespace(note_look=lambda *, adopted: told.append(adopted))
        await BoardWatcher(control, MemoryWorld().channel("me"), onlooker).catch_up()

    asyncio.run(story())
    assert told == ([True] if is_new else [])
