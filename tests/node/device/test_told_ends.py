"""What a node says when a device no longer holds its shard: lost, given up, or moved on."""

import asyncio
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.device.local_device import STEADY_SECONDS, LocalDevice, Presence
from node.device.shard_policy import ALIKE
from node.worker.messages import Broken, Loaded, Prepared
from swarm.errors import Deadline
from swarm.plan import Assignment, Shard, Stage
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.node.nodes import node_of
from tests.node.stands import IdleServer, ScriptedWorker

CAUSE = "the worker process ended: it closed the connection"
LOST = f"lost: the shard of device 0 ({CAUSE}); loading again when planned"
RELEASED = "released: device 0 no longer holds layers"


@pytest.mark.parametrize(
    ("failure", "assigned", "reason", "told"),
    [
        (CAUSE, True, "", LOST),
        (CAUSE, False, "3 GB are missing", LOST),
        ("", False, "3 GB are missing", f"{RELEASED}: 3 GB are missing"),
        ("", False, "", f"{RELEASED}, the plan has no part for it"),
        ("", True, "", None),
    ],
)
def test_the_end_of_a_shard_is_told_as_what_it_is(
    tmp_path: Path, failure: str, assigned: bool, reason: str, told: str | None
) -> None:
    lines: list[str] = []
    node = node_of(MemoryWorld(), "me", tmp_path, lines)
    node._devices._plan_store = SimpleNamespace(  # type: ignore[assignment]
        assignment_of=lambda _id: "a part" if assigned else None,
        accepted=SimpleNamespace(reason=reason),
    )
    device: Any = SimpleNamespace(
        index=0, id="me/0", shard_state=None, failure=failure, presence=Presence.ON
    )
    node._devices._shown_groups = {0: "group"}
    node._devices._show_load(device)
    assert lines == ([told] if told else [])
    assert node._devices._shown_groups == {}


def device_that_leads(shards: int) -> LocalDevice:
    """A device whose plan lets it lead a stage of so many ranks; the others answer nothing."""
    me = peer_named("me")
    stage = Stage(0, 8, tuple(Shard(f"{peer_named(str(rank))}/0", 4, 4) for rank in range(shards)))
    plan_store = SimpleNamespace(
        assignment_of=lambda _device: Assignment(stage, 0), pipeline_of=lambda _device: None
    )
    context: Any = SimpleNamespace(
        channel=MemoryWorld().channel(me),
        server=IdleServer(),
        plan_store=plan_store,
        folder="",
        store=None,
        quant="",
        host="",
        reach=None,
    )
    return LocalDevice(context, 0, 1, ScriptedWorker())


def test_a_shard_is_lost_for_what_its_worker_says_until_the_next_one_is_ready() -> None:
    async def story() -> None:
        device = device_that_leads(1)
        device._since = -math.inf  # long enough ago to lead at once
        assert device.failure == ""
        await device.reconcile()
        device.on_answer(Broken("", CAUSE))
        assert device.failure == CAUSE
        device._since = -math.inf
        await device.reconcile()
        assert device.shard_state is not None
        device.on_answer(Loaded(device.shard_state.group, 1, 1, 1, 0.1))
        assert device.failure == ""

    asyncio.run(story())


@pytest.mark.parametrize(
    ("shards", "seconds", "failures"),
    [(1, STEADY_SECONDS, 0), (1, STEADY_SECONDS - 1, 1), (2, STEADY_SECONDS, 1)],
    ids=["served for long", "served for a moment", "with other ranks"],
)
def test_only_the_loss_of_a_shard_that_served_alone_for_long_calls_for_no_pause(
    monkeypatch: pytest.MonkeyPatch, shards: int, seconds: float, failures: int
) -> None:
    now = [1000.0]
    monkeypatch.setattr("node.device.local_device.time", SimpleNamespace(monotonic=lambda: now[0]))
    device = device_that_leads(shards)
    _load_and_lose(device, now, seconds)
    assert device.failure == CAUSE
    assert device._facts().failures == failures
    _begin(device, now)
    device.on_answer(Broken("", "it cannot be loaded"))
    assert device._facts().failures == 2
    _load_and_lose(device, now, 0.0)
    assert device._facts().failures == 1  # again and again at once: it was no accident


def _begin(device: LocalDevice, now: list[float]) -> None:
    assignment = device._context.plan_store.assignment_of(device.id)
    assert assignment is not None
    device.shard_state = device._begin(assignment, "g")
    now[0] += 5 * STEADY_SECONDS  # loading takes its time


def _load_and_lose(device: LocalDevice, now: list[float], seconds: float) -> None:
    _begin(device, now)
    device.on_answer(Loaded("g", 1, 1, 1, 0.1))
    now[0] += seconds
    device.on_answer(Broken("", CAUSE))


def test_a_group_that_does_not_form_is_said_and_tried_again_as_soon_however_often() -> None:
    async def story() -> None:
        device = device_that_leads(2)
        device.worker.prepare = refuse  # type: ignore[method-assign]
        assignment = device._context.plan_store.assignment_of(device.id)
        assert assignment is not None
        for _ in range(2 * ALIKE):
            await device._lead(assignment)
        assert device.failure == "its group was not formed: The worker did not answer within 30 s."
        assert device._facts().alike == 1

    asyncio.run(story())


async def refuse(group: str, host: str) -> Prepared:
    raise Deadline("The worker did not answer within 30 s.")


def test_a_cause_is_warned_of_once_and_then_written_down(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def story() -> None:
        device = device_that_leads(1)
        for cause in (CAUSE, CAUSE, "another"):
            device._break(cause)

    asyncio.run(story())
    told = [(record.levelno, record.getMessage()) for record in caplog.records]
    lost = "shard of device 0 is lost: "
    assert told == [
        (logging.WARNING, lost + CAUSE),
        (logging.INFO, lost + CAUSE),
        (logging.WARNING, lost + "another"),
    ]
