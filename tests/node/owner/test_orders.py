"""What a node does for its owner's programs, order by order."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from node.owner.control_server import LINGERS, Words
from node.owner.orders import LONGEST_PAUSE, Orders
from node.owner.pauses import OWNER
from swarm.errors import BadInput
from swarm.records import Capability, record_of_map
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.node.memberships import capability_of

ME, OTHER = peer_named("me"), peer_named("other")
FACTS = {"peer": ME, "swarm": "forest", "devices": [], "plan": b""}


class Control:
    """An owner's control that notes what it is told."""

    def __init__(self) -> None:
        self.why, self.paused_for = "", 0.0

    async def pause(self, seconds: float = math.inf) -> None:
        self.why, self.paused_for = OWNER, seconds

    async def resume(self) -> None:
        self.why = ""


class Bench:
    """Orders for a node in memory."""

    def __init__(self) -> None:
        self.world, self.control, self.left = MemoryWorld(), Control(), False
        seen: Any = self
        control: Any = self.control
        self.orders = Orders(control, seen, self.world.board(ME), self.leave)

    def facts(self) -> dict[str, Any]:
        return dict(FACTS)

    def leave(self) -> None:
        self.left = True


def run(story: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(10.0):
            await story(Bench())

    asyncio.run(whole())


def test_pause_and_resume_say_what_has_come_of_them() -> None:
    async def story(bench: Bench) -> None:
        paused = await bench.orders.carry_out("pause", {})
        assert paused["paused"] == OWNER
        assert bench.control.paused_for == math.inf
        resumed = await bench.orders.carry_out("resume", {})
        assert resumed == {"was": OWNER, "paused": ""}
        assert (await bench.orders.carry_out("resume", {}))["was"] == ""

    run(story)


def test_a_pause_takes_a_number_of_seconds_and_no_nonsense() -> None:
    async def story(bench: Bench) -> None:
        await bench.orders.carry_out("pause", {"seconds": 60})
        assert bench.control.paused_for == 60
        await bench.orders.carry_out("pause", {"seconds": 1e300})
        assert bench.control.paused_for == LONGEST_PAUSE
        for nonsense in (0, -1.0, math.nan, "1h", None, [1]):
            with pytest.raises(BadInput, match="positive number"):
                await bench.orders.carry_out("pause", {"seconds": nonsense})

    run(story)


def test_who_lets_the_node_leave_may_wait_for_its_end() -> None:
    async def story(bench: Bench) -> None:
        assert (await bench.orders.carry_out("leave", {}))[LINGERS]
        assert bench.left

    run(story)


def test_a_status_holds_what_the_board_says_and_whether_the_owner_has_paused() -> None:
    async def story(bench: Bench) -> None:
        await bench.world.board(OTHER).publish(replace(capability_of(), name="oak"))
        bench.control.why = "a game runs"
        status: Words = await bench.orders.carry_out("status", {})
        assert status["node"] == FACTS | {"paused": "a game runs"}
        seen = record_of_map(Capability, status["records"][Capability.KEY][OTHER])
        assert isinstance(seen, Capability)
        assert seen.name == "oak"

    run(story)


def test_an_order_of_another_version_is_refused_with_those_that_are_known() -> None:
    async def story(bench: Bench) -> None:
        with pytest.raises(BadInput, match=r"no order 'dance'.*pause, resume, leave, status"):
            await bench.orders.carry_out("dance", {})

    run(story)
