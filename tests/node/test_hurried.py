"""Life: strangers cannot make a node look at the board without end."""

import asyncio
from pathlib import Path

from node.node import HURRIES_BURST
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.node.lives import life_of


def test_a_stranger_hurries_a_node_a_few_times_and_a_crowd_not_much_more(tmp_path: Path) -> None:
    async def story() -> None:
        life = life_of(MemoryWorld(), "me", tmp_path, [])
        hurried = 0
        for number in range(400):
            await life._hear_news(peer_named(f"stranger{number // 100}"), b"")
            hurried += life._news.is_set()
            life._news.clear()
            if number == 99:
                assert hurried <= HURRIES_BURST + 1
        assert HURRIES_BURST <= hurried <= 3 * HURRIES_BURST + 2

    asyncio.run(story())
