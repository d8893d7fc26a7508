"""A worker that is told nonsense, or something else halfway, says so and lives on."""

import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import pytest

from node.worker.compute_loop import Worker
from node.worker.messages import (
    CODEC,
    Broken,
    Computed,
    Failed,
    Given,
    Load,
    Loaded,
    Measure,
    Prepare,
    Reserved,
    Unload,
)
from node.worker.scheduler import Arrived
from swarm.wire.codec import Decoder
from swarm.wire.messages import TEXT_CAP, Message
from tests.node.worker.shards import BUDGET, FOLDER, lone_shard, reserve, rows_of, spec_of


class Bench:
    """A worker in this process, and what it answers."""

    def __init__(self) -> None:
        self.node, self.theirs = socket.socketpair()
        self.worker = Worker(self.theirs, device="cpu", slowdown=1.0)
        self._decoder = Decoder(CODEC)

    def tell(self, orders: Sequence[Message]) -> list[Message]:
        """Let the worker handle orders that came at once; returns its answers."""
        told = [order for order in orders if isinstance(order, Load | Unload | Prepare)]
        self.worker._told += len(told)
        for load in (order for order in told if isinstance(order, Load)):
            self.worker._weight_requests.given(Given(load.group))  # all weights are in the folder
        for order in orders:
            self.worker._handle(Arrived(order, time.perf_counter()))
        while self.worker._schedule:
            self.worker._step()
        self.node.setblocking(False)
        return list(self._decoder.feed(self.node.recv(1 << 20)))


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with made.node, made.theirs:
        yield made


def load_order(**changes: object) -> Load:
    spec = asdict(spec_of(0, 8)) | {
        "folder": str(FOLDER),
        "kv_bounds": [0, 8],
        "mlp_bounds": [0, 8],
    }
    return Load("g", spec | changes, BUDGET)


@pytest.mark.parametrize(
    "changes",
    [
        {"start": 5, "end": 2},
        {"kv_bounds": [0]},
        {"kv_bounds": [0, 9]},
        {"rank": 7},
        {"dtype": "f8"},
        {"unknown": 1},
        {"end": 99},
    ],
)
def test_a_shard_that_cannot_be_is_reported_and_the_next_one_loads(
    bench: Bench, changes: dict[str, object]
) -> None:
    (broken,) = bench.tell([load_order(**changes)])
    assert isinstance(broken, Broken)
    assert isinstance(bench.tell([load_order()])[-1], Loaded)


def test_a_load_is_given_up_when_the_node_wants_something_else(bench: Bench) -> None:
    answers = bench.tell([load_order(), Unload()])
    assert not any(isinstance(each, Loaded) for each in answers)
    broken = answers[-1]
    assert isinstance(broken, Broken)
    assert "other plans" in broken.reason
    assert bench.worker._shard is None
    assert isinstance(bench.tell([load_order()])[-1], Loaded)


def test_a_refusal_that_quotes_a_stranger_fits_into_a_frame() -> None:
    order = reserve("s", [1])
    order.sampling["temperature"] = "x" * 60_000
    (answer,) = lone_shard(0, 8).apply([order])
    assert isinstance(answer, Reserved)
    assert answer.code == "bad_frame"
    assert len(answer.reason) <= TEXT_CAP
    assert CODEC.encode(answer)


def test_a_step_that_raises_anything_costs_the_shard_and_not_the_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.tell([load_order()])
    assert bench.worker._runner is not None

    def stumble(*_: object) -> None:
        raise IndexError("index out of range in self")

    monkeypatch.setattr(bench.worker._runner.forward, "run", stumble)
    answers = bench.tell([reserve("s", [1]), rows_of("s", 0, [1])])
    assert answers[1:] == [
        Broken("g", "index out of range in self"),
        Failed("s", "stage_lost", "The shard is not loaded."),
    ]
    assert isinstance(bench.tell([load_order()])[-1], Loaded)


def test_an_order_that_cannot_be_followed_is_reported(bench: Bench) -> None:
    (broken,) = bench.tell([Prepare("g", "192.0.2.1")])
    assert isinstance(broken, Broken)
    assert broken.group == "g"
    (unmeasured,) = bench.tell([Measure({"name": "nothing"})])
    assert isinstance(unmeasured, Broken)
    assert isinstance(bench.tell([load_order()])[-1], Loaded)


@pytest.mark.parametrize(
    ("answer", "instead"),
    [
        (Computed("s", 0, 1, True, ids=[-1]), Failed),
        (Failed("s", "bad_frame", "\ud800"), Failed),
        (Reserved("s", -1), Reserved),
        (Broken("g", "no file \udcff"), Broken),
    ],
)
def test_an_answer_that_does_not_travel_is_replaced_by_one_that_does(
    bench: Bench, answer: Message, instead: type[Message]
) -> None:
    bench.worker._answer(answer, Reserved("other", 9))
    heard, other = Decoder(CODEC).feed(bench.node.recv(1 << 20))
    assert isinstance(heard, instead)
    assert getattr(heard, "code", "internal") == "internal"
    assert other == Reserved("other", 9)
