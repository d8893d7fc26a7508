"""One client that asks for all it can leaves the others their part of a device's time."""

from dataclasses import dataclass, field

import pytest

from node.company import Company
from node.fair_share import FREE_SECONDS, FairShare
from node.orders import Compute, Release, Reserve
from node.schedule import DECODE_TOKENS, LEAST_ROWS, Arrived, Schedule

HONEST = 8
STEP_SECONDS, ROW_SECONDS = 0.004, 0.0003  # of swarm-sized models on one core
AWAY_SECONDS = 0.002  # until a token has come around
UNTIL_SECONDS = 20.0


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
    company: Company = field(default_factory=lambda: Company(1.0))
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
            self._await_company()
            self._step()

    def _arrive(self, until: float) -> None:
        self.now = max(self.now, until)
        due = [each for each in self.coming if each[0] <= self.now]
        self.coming = [each for each in self.coming if each[0] > self.now]
        for when, order in due:
            self.schedule.add(Arrived(order, when))

    def _await_company(self) -> None:
        ends_at = self.now + self.company.patience_seconds
        while 0 < self.schedule.decodes < self.company.wanted:
            if not self.coming or min(each[0] for each in self.coming) > ends_at:
                self.now = max(self.now, ends_at)
                return
            self._arrive(min(each[0] for each in self.coming))

    def _step(self) -> None:
        step = self.schedule.next_step(self.company.at_most(self.schedule.decoding), 128)
        rows = [each.order for each in step if isinstance(each.order, Compute)]
        if not rows:
            return
        seconds = STEP_SECONDS + ROW_SECONDS * sum(order.tokens for order in rows)
        self.now += seconds
        self.schedule.ran(rows, seconds, self.now)
        if max(order.tokens for order in rows) <= DECODE_TOKENS:
            fair = [o.session for o in rows if not self.schedule.is_over(o.session)]
            self.company.ran(fair, seconds)
        for order in rows:
            if order.sample:
                client = self.schedule._clients[order.session]
                self.tokens[client] = self.tokens.get(client, 0) + 1
                after = decode(order.session, 1, order.position + order.tokens)
                self.coming.append((self.now + AWAY_SECONDS, after))


@pytest.mark.parametrize("sessions", [32, 500])
@pytest.mark.parametrize("prompt", [1, 4096])
def test_eight_clients_keep_half_of_their_speed_beside_one_that_takes_all_it_can(
    sessions: int, prompt: int
) -> None:
    quiet, busy = Device(), Device()
    for number in range(sessions):
        busy.open(f"g{number}", "greedy", prompt)
    for device in (quiet, busy):
        for number in range(HONEST):
            device.open(f"h{number}", f"honest {number}", 16)
        device.run(UNTIL_SECONDS)
    for number in range(HONEST):
        name = f"honest {number}"
        assert busy.tokens[name] >= 0.5 * quiet.tokens[name]
