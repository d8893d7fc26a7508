"""One client that asks for all it can leaves the others their part of a device's time."""

import math
import queue
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from node.worker.batching import DecodeBatcher
from node.worker.compute_loop import Worker
from node.worker.fair_share import (
    FREE_SECONDS,
    IDLE_SECONDS,
    MOMENT_SECONDS,
    MOMENT_STEPS,
    FairShare,
)
from node.worker.messages import Compute, Release, Reserve, Unload
from node.worker.scheduler import DECODE_TOKENS, LEAST_ROWS, Arrived, Schedule

HONEST = 8
STEP_SECONDS, ROW_SECONDS = 0.004, 0.0003  # of swarm-sized models on one core
AWAY_SECONDS = 0.002  # until a token has come around
UNTIL_SECONDS = 20.0
PATIENT_SECONDS = 30.0  # for another thread, on a busy machine


def test_a_client_alone_never_has_too_much() -> None:
    shares = FairShare()
    for second in range(100):
        shares.ran({"only": 500}, 1.0, float(second))
    assert not shares.is_over("only")


def test_equal_clients_are_never_over_and_a_greedy_one_is_until_it_rests() -> None:
    shares = FairShare()
    for step in range(200):
        shares.ran({"a": 30, "b": 30}, 0.05, step * 0.05)
    assert not shares.is_over("a")
    assert not shares.is_over("b")
    for step in range(200, 400):
        shares.ran({"a": 300, "b": 30, "c": 30}, 0.05, step * 0.05)
    assert shares.is_over("a")
    assert not shares.is_over("b")
    shares.ran({"b": 1}, 0.01, 100.0)
    assert not shares.is_over("a")


def test_a_prompt_now_and_then_is_free() -> None:
    shares = FairShare()
    shares.ran({"new": 1000, "old": 1}, FREE_SECONDS, 0.0)
    assert not shares.is_over("new")


def test_clients_that_are_gone_are_forgotten() -> None:
    shares = FairShare()
    for number in range(10_000):
        shares.ran({str(number): 1}, 0.01, number * 1.0)
    assert len(shares._used) < 100


def test_a_client_that_is_over_gets_few_rows_and_the_others_all_of_theirs() -> None:
    schedule = Schedule()
    for session, client in [("g0", "greedy"), ("g1", "greedy"), ("h0", "h"), ("h1", "i")]:
        schedule.add(Arrived(Reserve(session, 900, 0, {}, client=client), 0.0))
    schedule.next_step()
    for step in range(100):
        schedule.ran([decode("g0", 300), decode("h0", 1), decode("h1", 1)], 0.1, step * 0.1)
    for order in [decode("g0", 256), decode("g1", 8), decode("h0", 1), decode("h1", 200)]:
        schedule.add(Arrived(order, 1.0))
    taken = {each.order.session: each.order.tokens for each in schedule.next_step()}  # type: ignore[attr-defined]
    assert taken["g0"] == 101  # as many as one of the others has on the average
    assert taken["h0"] == 1
    assert taken["h1"] == 200
    assert sum(taken.get(name, 0) for name in ("g0", "g1")) <= 101
    later = schedule.next_step()
    assert sum(each.order.tokens for each in later if isinstance(each.order, Compute)) <= LEAST_ROWS
    assert schedule.decoding == []
    for session in ("g0", "g1", "h0", "h1"):
        schedule.add(Arrived(Release(session), 2.0))
    while schedule:
        schedule.next_step()
    assert schedule._clients == {}


def test_a_client_that_is_over_gets_one_row_beside_clients_of_one_row_each() -> None:
    schedule = Schedule()
    sessions = {f"g{number}": "greedy" for number in range(50)}
    sessions |= {f"h{number}": f"honest {number}" for number in range(HONEST)}
    for session, client in sessions.items():
        schedule.add(Arrived(Reserve(session, 900, 0, {}, client=client), 0.0))
    schedule.next_step()
    for step in range(100):
        schedule.ran([decode("g0", 300), decode("h0", 1)], 0.1, step * 0.1)
    for session in sessions:
        schedule.add(Arrived(decode(session, 1), 1.0))
    taken = [each.order.session for each in schedule.next_step()]  # type: ignore[attr-defined]
    assert sum(name.startswith("g") for name in taken) == 1
    assert sum(name.startswith("h") for name in taken) == HONEST


def decode(session: str, tokens: int, position: int = 0) -> Compute:
    return Compute(session, position, tokens, True, "i32", body=bytes(4 * tokens))


@dataclass
class Device:
    """A worker's schedule on a device whose step takes so long a row; time is only counted."""

    schedule: Schedule = field(default_factory=Schedule)
    batcher: DecodeBatcher = field(default_factory=lambda: DecodeBatcher(1.0))
    now: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)  # by client
    coming: list[tuple[float, Compute]] = field(default_factory=list)

    def open(self, session: str, client: str, prompt: int) -> None:
        self.schedule.add(Arrived(Reserve(session, 9999, 0, {}, client=client), self.now))
        self.schedule.add(Arrived(decode(session, prompt), self.now))

    def run(self, seconds: float) -> None:
        while self.now < seconds:
            self._arrive(self.now)
            if not self.schedule:
                self._arrive(min(self.coming, key=lambda each: each[0])[0])
            self._await_others()
            self._await_batch()
            self._step()

    def _arrive(self, until: float) -> None:
        self.now = max(self.now, until)
        due = [each for each in self.coming if each[0] <= self.now]
        self.coming = [each for each in self.coming if each[0] > self.now]
        for when, order in due:
            self.schedule.add(Arrived(order, when))

    def _await_others(self) -> None:
        while seconds := self.schedule.held_seconds(self.now):
            comes_at = min((each[0] for each in self.coming), default=math.inf)
            self._arrive(min(comes_at, self.now + seconds))

    def _await_batch(self) -> None:
        ends_at = self.now + self.batcher.window_seconds
        while 0 < self.schedule.decodes < self.batcher.target_size:
            if not self.coming or min(each[0] for each in self.coming) > ends_at:
                self.now = max(self.now, ends_at)
                return
            self._arrive(min(each[0] for each in self.coming))

    def _step(self) -> None:
        step = self.schedule.next_step(self.batcher.at_most(self.schedule.decoding), 128, self.now)
        rows = [each.order for each in step if isinstance(each.order, Compute)]
        if not rows:
            return
        seconds = STEP_SECONDS + ROW_SECONDS * sum(order.tokens for order in rows)
        self.now += seconds
        self.schedule.ran(rows, seconds, self.now)
        if max(order.tokens for order in rows) <= DECODE_TOKENS:
            fair = [o.session for o in rows if not self.schedule.is_over(o.session)]
            self.batcher.ran(fair, seconds)
        for order in rows:
            if order.sample:
                client = self.schedule._clients[order.session]
                self.tokens[client] = self.tokens.get(client, 0) + 1
                after = decode(order.session, 1, order.position + order.tokens)
                self.coming.append((self.now + AWAY_SECONDS, after))


def open_honest(device: Device) -> None:
    for number in range(HONEST):
        device.open(f"h{number}", f"honest {number}", 16)


@pytest.mark.parametrize("sessions", [32, 500])
@pytest.mark.parametrize("prompt", [1, 4096])
def test_eight_clients_keep_three_quarters_of_their_speed_beside_one_that_takes_all_it_can(
    sessions: int, prompt: int
) -> None:
    quiet, busy = Device(), Device()
    for number in range(sessions):
        busy.open(f"g{number}", "greedy", prompt)
    for device in (quiet, busy):
        open_honest(device)
        device.run(UNTIL_SECONDS)
    for number in range(HONEST):
        name = f"honest {number}"
        assert busy.tokens[name] >= 0.75 * quiet.tokens[name]


def test_a_client_that_waits_for_others_has_its_part_of_the_time_and_every_session_is_served() -> (
    None
):
    busy = Device()
    for number in range(100):
        busy.open(f"g{number}", "greedy", 1)
    open_honest(busy)
    busy.run(UNTIL_SECONDS)
    assert busy.tokens["greedy"] >= busy.tokens["honest 0"]
    waiting = {order.session: order.position for _, order in busy.coming}
    waiting |= {name: orders[0].order.position for name, orders in busy.schedule._waiting.items()}  # type: ignore[attr-defined]
    assert min(waiting[f"g{number}"] for number in range(100)) > 50


def test_once_the_others_are_gone_one_client_has_all_of_the_device() -> None:
    alone, left = Device(), Device()
    for device in (alone, left):
        for number in range(100):
            device.open(f"g{number}", "greedy", 1)
    open_honest(left)
    spoken = {}
    for device in (alone, left):
        for until in (5.0, 5.0 + 2 * MOMENT_SECONDS, 6.5, 5.5 + IDLE_SECONDS, 13.0):
            device.tokens.clear()
            device.run(until)
            device.coming = [each for each in device.coming if each[1].session.startswith("g")]
            spoken[device is left, until] = device.tokens["greedy"]
    least_each_second = LEAST_ROWS / (STEP_SECONDS + LEAST_ROWS * ROW_SECONDS)
    assert spoken[True, 6.5] >= 0.95 * least_each_second  # no pauses any more
    assert spoken[True, 13.0] >= 0.95 * spoken[False, 13.0]


def test_a_heavy_client_never_waits_for_a_single_light_one() -> None:
    shares = FairShare()
    for step in range(1000):
        shares.ran({"heavy": 1000, "light": 1} if step % 2 else {"heavy": 1}, 0.01, step * 0.01)
        assert not shares.is_far_over("heavy")
        assert shares.pause_seconds(0.01, step * 0.01) == 0.0


def crowd(turn_seconds: float = 0.01, share: float = 1.0) -> tuple[FairShare, float]:
    """One client far over among eight that ran a moment ago, and the time now."""
    shares, now = FairShare(share), 0.0
    for _ in range(1000):
        now += turn_seconds
        shares.ran({"greedy": 100} | {str(each): 1 for each in range(HONEST)}, 0.01, now)
    assert shares.is_far_over("greedy")
    assert not shares.is_far_over("0")
    return shares, now


def test_a_client_far_over_pauses_as_long_as_the_others_could_compute_meanwhile() -> None:
    shares, now = crowd()
    assert shares.pause_seconds(0.01, now) == pytest.approx(HONEST * 0.01)


def test_a_pause_is_never_longer_than_a_moment_and_ends_when_the_others_have_gone() -> None:
    shares, now = crowd()
    assert shares.pause_seconds(0.1, now) == pytest.approx(0.1 * MOMENT_STEPS)
    assert shares.pause_seconds(0.01, now + MOMENT_SECONDS) == 0.0


def test_nobody_pauses_for_clients_that_are_elsewhere_most_of_the_time() -> None:
    shares, now = crowd(turn_seconds=0.1)
    assert shares.pause_seconds(0.01, now) == 0.0
    shares, now = crowd(turn_seconds=0.1, share=0.25)  # three quarters of which are other stages
    assert shares.pause_seconds(0.01, now) > 0.0


def held_schedule(seconds: float, now: float) -> Schedule:
    """A schedule that has just run a step of a client far over, alone; its next row waits."""
    schedule = Schedule()
    clients = ["greedy", "greedy", *(f"honest {number}" for number in range(HONEST))]
    names = ["g0", "g1", *(f"h{number}" for number in range(HONEST))]
    for session, client in zip(names, clients, strict=True):
        schedule.add(Arrived(Reserve(session, 900, 0, {}, client=client), now))
    schedule.next_step()
    rows = [decode("g0", 500), *(decode(name, 1) for name in names[2:])]
    schedule.ran(rows, seconds, now)
    schedule.ran([decode("g0", 1)], seconds, now)
    schedule.add(Arrived(decode("g1", 1), now))
    return schedule


def sessions_of(step: list[Arrived]) -> list[str]:
    return [each.order.session for each in step]  # type: ignore[attr-defined]


def test_rows_are_held_until_others_come_or_the_pause_ends() -> None:
    schedule = held_schedule(1.0, now=100.0)
    assert schedule.held_seconds(100.5) == pytest.approx(3.5)
    assert schedule.next_step(now=100.5) == []
    schedule.add(Arrived(decode("h0", 1), 100.6))
    assert schedule.held_seconds(100.6) == 0.0
    assert sessions_of(schedule.next_step(now=100.6)) == ["h0", "g1"]
    schedule.add(Arrived(decode("g1", 1), 100.7))
    assert schedule.held_seconds(104.0) == 0.0
    assert sessions_of(schedule.next_step(now=104.0)) == ["g1"]


def test_sessions_come_and_go_while_rows_are_held() -> None:
    schedule = held_schedule(1.0, now=100.0)
    schedule.add(Arrived(Release("g0"), 100.1))
    schedule.add(Arrived(Reserve("g2", 900, 0, {}, client="greedy"), 100.1))
    assert schedule.held_seconds(100.2) == 0.0
    assert sessions_of(schedule.next_step(now=100.2)) == ["g0", "g2"]
    assert schedule.held_seconds(100.2) > 0.0
    assert sessions_of(schedule.next_step()) == ["g1"]  # as a worker does before another shard


def test_another_shard_begins_with_nothing_held() -> None:
    schedule = held_schedule(1.0, now=100.0)
    schedule.serves(0.5)
    assert schedule.held_seconds(100.1) == 0.0


class Noting(queue.Queue[list[Arrived]]):
    """An inbox that says when somebody waits at it, and how often that was."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0
        self.is_awaited = threading.Event()

    def get(self, block: bool = True, timeout: float | None = None) -> list[Arrived]:
        self.waits += 1
        self.is_awaited.set()
        return super().get(block, timeout)


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A worker without a shard, whose only row is held back for an hour."""
    node, theirs = socket.socketpair()
    with node, theirs:
        made = Worker(theirs, device="cpu", slowdown=1.0)
        made._schedule = held_schedule(1000.0, time.perf_counter())
        made._inbox = Noting()
        yield made


def await_others(worker: Worker) -> threading.Thread:
    waiting = threading.Thread(target=worker._await_others, daemon=True)
    waiting.start()
    assert isinstance(worker._inbox, Noting)
    assert worker._inbox.is_awaited.wait(PATIENT_SECONDS)
    return waiting


def test_a_worker_that_holds_rows_back_sleeps_until_another_row_comes(worker: Worker) -> None:
    waiting = await_others(worker)
    worker._inbox.put([Arrived(decode("h0", 1), time.perf_counter())])
    waiting.join(PATIENT_SECONDS)
    assert not waiting.is_alive()
    assert worker._inbox.waits == 1  # type: ignore[attr-defined]
    assert sessions_of(worker._schedule.next_step(now=time.perf_counter())) == ["h0", "g1"]


def test_a_worker_goes_on_waiting_for_others_when_more_comes_that_is_held(worker: Worker) -> None:
    waiting = await_others(worker)
    worker._inbox.put([Arrived(decode("g0", 1), time.perf_counter())])
    worker._inbox.put([Arrived(decode("h0", 1), time.perf_counter())])
    waiting.join(PATIENT_SECONDS)
    assert not waiting.is_alive()
    assert worker._inbox.waits == 2  # type: ignore[attr-defined]
    assert len(worker._schedule) == 3


def test_an_order_about_the_shard_ends_all_holding(worker: Worker) -> None:
    waiting = await_others(worker)
    worker._inbox.put([Arrived(Unload(), time.perf_counter())])
    waiting.join(PATIENT_SECONDS)
    assert not waiting.is_alive()
    assert len(worker._schedule) == 0


def test_a_worker_without_room_for_more_orders_holds_nothing_back(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.worker.compute_loop.MOST_WAITING", 1)
    worker._await_others()
    worker._step(worker._now())
    assert len(worker._schedule) == 0
    assert worker._inbox.waits == 0  # type: ignore[attr-defined]
