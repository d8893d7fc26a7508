"""A device that cannot do its part: others get it within seconds, whatever is wrong with it."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from node.control.eligible_peers import OUT_SECONDS
from node.worker.messages import Computed
from tests.node.control.test_plan_changes import HALF, LAYERS
from tests.node.virtual_swarm import (
    NEVER,
    ClockworkWorker,
    VirtualNode,
    VirtualSwarm,
    run,
)

WITHIN_SECONDS = 30.0
CUT_OFF = "/models/tiny/model.safetensors is cut off"


def cut_off(worker: ClockworkWorker) -> None:
    worker.cause = CUT_OFF


def killed_at_each_load(worker: ClockworkWorker) -> None:
    worker.dies = True


def halting(worker: ClockworkWorker) -> None:
    worker.load_seconds, worker.is_stalled = NEVER, True


def slow(worker: ClockworkWorker) -> None:
    worker.step_seconds = 5.0


KINDS: dict[Callable[[ClockworkWorker], None], str] = {
    cut_off: "model.safetensors is cut off",
    killed_at_each_load: "the worker process ended",
    halting: "its load has come to a halt",
    slow: "layers {part} are far slower than its figures say",
}


def holder_of(swarm: VirtualSwarm) -> VirtualNode:
    """A node that serves and does not plan."""
    serving = (made for made in swarm.nodes.values() if made.device.shard and not made.plans)
    return next(serving)


def cause_told_of(made: VirtualNode, swarm: VirtualSwarm) -> str:
    """What the plan in force says of a node that is left out."""
    accepted = swarm.nodes[swarm.planner].node._plan_store.accepted
    assert accepted is not None
    return accepted.left_out[made.peer]


@pytest.mark.parametrize("spoil", KINDS)
def test_the_part_of_a_device_that_fails_goes_to_the_spare(
    tmp_path: Path, spoil: Callable[[ClockworkWorker], None]
) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.begin("abc", HALF)
        failing = holder_of(swarm)
        part = failing.device.shard_state.assignment.stage  # type: ignore[union-attr]
        spare = next(made for made in swarm.nodes.values() if made.device.shard is None)
        spoil(failing.worker)
        began = time.monotonic()
        failing.worker.lose()
        while spare.device.shard is None:
            await swarm.watch(0.5)
            assert time.monotonic() - began <= WITHIN_SECONDS
        layers = f"{part.start}-{part.end - 1}"
        assert cause_told_of(failing, swarm) == KINDS[spoil].format(part=layers)
        await swarm.watch(5.0)
        assert swarm.served() == LAYERS
        assert len(swarm.since(began, "plan")) == 1

    run(story)


async def serve_slowly(swarm: VirtualSwarm, made: VirtualNode, seconds: float) -> None:
    """Let a device serve for so long, whose steps take far longer than when it was loaded."""
    for step in range(int(seconds)):
        made.worker.say(Computed("a session", step, 1, True, compute_us=1_000_000))
        await swarm.watch(1.0)


def test_a_device_that_becomes_slow_gives_its_part_to_the_spare_and_serves_on_till_then(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.begin("abc", HALF)
        failing = holder_of(swarm)
        spare = next(made for made in swarm.nodes.values() if made.device.shard is None)
        part = failing.device.words.removeprefix("serves ")
        began = time.monotonic()
        while spare.device.shard is None:
            await serve_slowly(swarm, failing, 1.0)
            assert failing.device.shard is not None
            assert time.monotonic() - began <= WITHIN_SECONDS
        assert spare.device.words == f"serves {part}"
        assert cause_told_of(failing, swarm) == f"{part} are far slower than its figures say"
        await swarm.watch(60.0)
        assert len(swarm.since(began, "plan")) == 1
        assert len(swarm.since(began, "load")) == 1

    run(story)


def test_a_device_that_becomes_slow_serves_on_where_there_is_no_other(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.begin("ab", HALF)
        failing = holder_of(swarm)
        began = time.monotonic()
        await serve_slowly(swarm, failing, 300.0)
        assert swarm.served() == LAYERS
        assert swarm.since(began, "load") == swarm.since(began, "unload") == []

    run(story)


def test_a_device_that_fails_is_asked_ever_more_rarely_while_there_is_nobody_else(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.begin("ab", HALF)
        failing = holder_of(swarm)
        cut_off(failing.worker)
        began = time.monotonic()
        failing.worker.lose()
        await swarm.watch(600.0)
        tries = [each.at for each in swarm.since(began, "load")]
        assert len(tries) <= 12
        assert tries[-1] - tries[-2] > 60.0
        failing.worker.cause = ""
        await swarm.watch(600.0)
        assert swarm.served() == LAYERS

    run(story)


def test_a_device_that_works_again_is_used_where_another_is_lost(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.begin("abc", HALF)
        failing = holder_of(swarm)
        cut_off(failing.worker)
        failing.worker.lose()
        await swarm.watch(2 * WITHIN_SECONDS)
        failing.worker.cause = ""
        await swarm.watch(OUT_SECONDS)
        lost = next(m for m in swarm.nodes.values() if m.device.shard and not m.plans)
        swarm.kill(lost.name)
        await swarm.watch(WITHIN_SECONDS)
        assert failing.device.shard is not None
        assert swarm.served() == LAYERS
        assert failing.device.trouble is None

    run(story)
