"""BoardWatcher: strangers cannot make a node look at the board without end."""

import asyncio
from pathlib import Path

from node.control.board_watcher import NEWS_BURST
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
