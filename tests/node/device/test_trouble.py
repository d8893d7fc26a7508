"""What a device tells others of the part that it fails to take up."""

import asyncio
import math
from types import SimpleNamespace

import pytest

from node.device.local_device import STALLED_SECONDS, TROUBLE_CAP, LocalDevice
from node.worker.messages import Broken, Loaded, Progress, Rank
from swarm.errors import Deadline, EngineError, PeerLost, SwarmError
from swarm.plan import Assignment
from swarm.records import Trouble
from tests.node.device.test_told_ends import device_that_leads

CAUSE = "The file '/models/tiny/model.safetensors' is cut off."


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: seconds[0])
    monkeypatch.setattr("node.device.local_device.time", clock)
    return seconds


def begin(device: LocalDevice) -> None:
    assignment = device._context.plan_store.assignment_of(device.id)
    assert assignment is not None
    device.shard_state = device._begin(assignment, "g")


def fail(device: LocalDevice, cause: str = CAUSE) -> None:
    begin(device)
    device.on_answer(Broken("g", cause))


def test_a_load_that_fails_is_told_with_its_cause_and_how_often_until_one_succeeds() -> None:
    device = device_that_leads(1)
    assert device.trouble is None
    fail(device)
    assert device.trouble == Trouble(0, 0, 8, 1, "The file 'model.safetensors' is cut off.")
    begin(device)  # tried again: nothing is better yet
    assert device.trouble
    device.on_answer(Broken("g", CAUSE))
    assert device.trouble.failures == 2
    begin(device)
    device.on_answer(Loaded("g", 1, 1, 1, 0.1))
    assert device.trouble is None


def test_an_accident_to_a_shard_that_was_ready_is_no_failure_to_take_it_up() -> None:
    device = device_that_leads(1)
    begin(device)
    device.on_answer(Loaded("g", 1, 1, 1, 0.1))
    device.on_answer(Broken("", "the worker process ended"))
    assert device.trouble is None


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (PeerLost("Peer carl was lost.", peer="carl"), "carl"),
        (Deadline("The worker did not answer within 30 s."), ""),
        (EngineError("no port is free"), ""),
    ],
)
def test_a_leader_names_the_rank_for_want_of_which_its_group_did_not_form(
    error: SwarmError, blamed: str
) -> None:
    async def story() -> None:
        device = device_that_leads(2)

        async def fail_to_gather(assignment: Assignment, group: str) -> list[Rank]:
            raise error

        device._rendezvous.lead = fail_to_gather  # type: ignore[method-assign]
        assignment = device._context.plan_store.assignment_of(device.id)
        assert assignment is not None
        await device._lead(assignment)
        assert device.trouble
        assert (device.trouble.blamed, device.trouble.failures) == (blamed, 1)
        begin(device)
        device.on_answer(Broken("g", CAUSE))  # it formed then, and the load failed here
        assert device.trouble.blamed == ""

    asyncio.run(story())


def test_what_others_are_told_is_short() -> None:
    device = device_that_leads(1)
    fail(device, "why " * 100)
    assert device.trouble
    assert len(device.trouble.cause) == TROUBLE_CAP


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/srv/a b", "a b"),
        ("cannot read (/models/y.bin): 5 MB/s", "cannot read (y.bin): 5 MB/s"),
        ("3 GB of 1/2", "3 GB of 1/2"),
    ],
)
def test_nobody_hears_where_files_lie_on_this_machine(text: str, told: str) -> None:
    device = device_that_leads(1)
    fail(device, text)
    assert device.trouble
    assert device.trouble.cause == told


def test_a_load_that_has_come_to_a_halt_is_told_at_once(now: list[float]) -> None:
    device = device_that_leads(1)
    device._since = -math.inf
    begin(device)
    device.worker.is_stalled = True  # type: ignore[misc]
    assert device.trouble is None
    now[0] += STALLED_SECONDS + 1
    assert device.trouble == Trouble(0, 0, 8, 0, "its load has come to a halt")
    device.on_answer(Progress("g", 0.5))
    assert device.trouble is None
    now[0] += STALLED_SECONDS + 1
    device.worker.is_stalled = False  # type: ignore[misc]
    assert device.trouble is None  # it computes: a large shard takes its time
