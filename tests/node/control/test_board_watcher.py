"""BoardWatcher: what a look brings is told, and strangers cannot make it look without end."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.control.board_watcher import NEWS_BURST, NEWS_SECONDS, BoardWatcher
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


def looks_quickly(
    *,
    planner: str | None = "anna",
    holds: bool = False,
    is_settled: bool = True,
    has_misses: bool = False,
    changed: bool = True,
) -> bool:
    """Whether a node that has looked for a while looks again soon after what it saw."""
    control: Any = SimpleNamespace(
        membership=SimpleNamespace(planner=planner, has_misses=has_misses, capabilities={"me": 0}),
        election=SimpleNamespace(holds=holds),
        plan_store=SimpleNamespace(plan=None),
    )
    onlooker: Any = SimpleNamespace(is_settled=is_settled)
    watcher = BoardWatcher(control, MemoryWorld().channel("me"), onlooker)
    watcher._changing_until = 0.0
    watcher._note_haste({"me", "anna"} if changed else {"me"}, None)
    return watcher._changing_until > 0.0


def test_a_change_hurries_who_plans_and_all_while_nobody_does() -> None:
    assert looks_quickly(planner=None)
    assert looks_quickly(planner=None, holds=True)
    assert looks_quickly(holds=True)
    assert not looks_quickly(holds=True, changed=False)


def test_who_serves_under_a_planner_waits_for_its_news_but_not_for_a_peer_that_is_silent() -> None:
    assert not looks_quickly()
    assert looks_quickly(has_misses=True)
    assert looks_quickly(is_settled=False, changed=False)


def test_news_are_looked_for_again_for_a_moment_since_they_may_outrun_the_board() -> None:
    async def story() -> None:
        watcher = BoardWatcher(SimpleNamespace(), MemoryWorld().channel("me"), SimpleNamespace())  # type: ignore[arg-type]
        watcher._changing_until = 0.0
        await watcher._hear_news("anna", b"")
        assert 0.0 < watcher._changing_until - time.monotonic() <= NEWS_SECONDS

    asyncio.run(story())
