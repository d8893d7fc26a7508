"""A node follows its owner's wishes at once, one after the other, and says so."""

import asyncio
from collections.abc import Awaitable, Callable

from node.owner.owner_control import OwnerControl
from node.owner.pauses import Pauses
from node.status_lines import StatusLines
from swarm.task_set import TaskSet
from tests.node.memberships import SPEC
from tests.node.stands import until


class Devices:
    """A node that notes what it is told; a pause takes it until it is let go on."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.is_free = asyncio.Event()
        self.is_free.set()

    async def pause(self) -> None:
        self.told.append("pause")
        await self.is_free.wait()
        self.told.append("free")

    def resume(self) -> None:
        self.told.append("resume")

    async def drop_standby(self) -> None:
        self.told.append("standby")


class Bench:
    """An owner's control of such a node, whose loop runs."""

    def __init__(self) -> None:
        self.node, self.lines, self.pauses = Devices(), list[str](), Pauses()
        self.now = 0.0
        status = StatusLines(self.lines.append, lambda _fraction: None, SPEC)
        self.control = OwnerControl(
            self.pauses, self.node, self.node.drop_standby, status, clock=lambda: self.now
        )


def run(story: Callable[[Bench], Awaitable[None]], *, begins: bool = True) -> Bench:
    async def whole() -> Bench:
        bench = Bench()
        async with asyncio.timeout(20.0), TaskSet() as tasks:
            if begins:
                tasks.create("control", bench.control.run())
                await asyncio.sleep(0)
            await story(bench)
        return bench

    return asyncio.run(whole())


def test_an_order_returns_when_the_memory_is_free_the_standby_workers_too() -> None:
    async def story(bench: Bench) -> None:
        await bench.control.pause()
        assert sorted(bench.node.told) == ["free", "pause", "standby"]
        await bench.control.pause()  # it is paused already
        await bench.control.resume()

    bench = run(story)
    assert bench.node.told[-1:] == ["resume"]
    assert len(bench.node.told) == 4
    assert [line.partition(":")[0] for line in bench.lines] == ["paused", "resumed"]


def test_a_signal_or_a_rule_pauses_without_an_order() -> None:
    async def story(bench: Bench) -> None:
        bench.pauses.note("a game runs", wants=True)
        await until(lambda: bench.lines)
        assert bench.control.why == "a game runs"
        bench.pauses.note("a game runs", wants=False)
        await until(lambda: len(bench.lines) == 2)

    assert run(story).lines[0].startswith("paused: a game runs; no device is in use")


def test_a_pause_with_an_end_ends_by_itself() -> None:
    async def story(bench: Bench) -> None:
        await bench.control.pause(0.05)
        assert bench.control.why
        bench.now = 0.05
        await until(lambda: len(bench.lines) == 2)

    assert run(story).node.told[-1] == "resume"


def test_who_resumes_while_the_node_pauses_is_heard_after_that() -> None:
    async def story(bench: Bench) -> None:
        bench.node.is_free.clear()
        pausing = asyncio.create_task(bench.control.pause())
        await until(lambda: "pause" in bench.node.told)
        resuming = asyncio.create_task(bench.control.resume())
        bench.node.is_free.set()
        await asyncio.gather(pausing, resuming)

    assert [each for each in run(story).node.told if each != "standby"] == [
        *("pause", "free", "resume")
    ]


def test_a_wish_from_before_the_node_has_its_devices_is_carried_out_then() -> None:
    async def story(bench: Bench) -> None:
        bench.pauses.pause(asyncio.get_running_loop().time())
        await bench.control.apply()
        assert bench.node.told == []
        async with TaskSet() as tasks:
            tasks.create("control", bench.control.run())
            await until(lambda: bench.lines)

    assert "pause" in run(story, begins=False).node.told
