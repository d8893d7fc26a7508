"""Newcomers leave room to sessions in the middle of an answer, here or on their way back."""

import torch

from node.engine.kv_cache.admission import (
    MOST_AWAITED,
    NEWCOMERS_LEAVE,
    RESERVED_SECONDS,
    Admission,
)
from node.engine.kv_cache.arena import KVStore
from node.engine.kv_cache.block_manager import HEADROOM_TOKENS, BlockManager
from node.engine.kv_cache.block_pool import BLOCK_TOKENS as BLOCK
from swarm.errors import NoRoom

LIKE = torch.empty(0)


class HandClock:
    """Stands still unless moved."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def manager_of(blocks: int) -> BlockManager:
    return KVStore(range(1), 2, (4, 4), blocks * BLOCK, LIKE).manager


def test_newcomers_leave_more_than_those_who_return() -> None:
    manager, admission = manager_of(40), Admission(lambda: 0.0)
    assert admission.spare(manager, is_new=True) == 0
    manager.open("a", 30 * BLOCK)
    manager.open("b", HEADROOM_TOKENS + BLOCK)
    assert admission.spare(manager, is_new=True) == NEWCOMERS_LEAVE + 1
    assert admission.spare(manager, is_new=False) == 2


def test_room_is_kept_for_who_was_sent_away_until_it_returns_or_is_late() -> None:
    clock = HandClock()
    manager, admission = manager_of(40), Admission(clock)
    table = manager.open("a", 30 * BLOCK)
    table.length = 10 * BLOCK
    other = manager.open("b:7", 5 * BLOCK)
    admission.sent_away(table)
    admission.sent_away(other)
    manager.close("a")
    manager.close("b:7")
    awaited = 10 + HEADROOM_TOKENS // BLOCK
    assert admission.spare(manager, is_new=True) == awaited + HEADROOM_TOKENS // BLOCK
    admission.came_again("b:8")
    admission.came_again("a stranger")
    assert admission.spare(manager, is_new=True) == awaited
    assert admission.is_awaited("a")
    assert admission.spare(manager, is_new=False) == 0
    clock.seconds += RESERVED_SECONDS + 0.1
    assert admission.spare(manager, is_new=True) == 0
    assert not admission.is_awaited("a")


def test_a_session_that_is_refused_again_and_again_is_kept_room_once() -> None:
    manager, admission = manager_of(40), Admission(lambda: 0.0)
    table = manager.open("a", 5 * BLOCK)
    for _ in range(1000):
        admission.sent_away(table)
    manager.close("a")
    assert admission.spare(manager, is_new=True) == HEADROOM_TOKENS // BLOCK


def test_what_is_awaited_is_bounded() -> None:
    manager, admission = manager_of(3 * MOST_AWAITED), Admission(lambda: 0.0)
    for number in range(MOST_AWAITED + 5):
        admission.sent_away(manager.open(f"{number}:1", 1))
        manager.close(f"{number}:1")
    assert admission.spare(manager, is_new=True) == MOST_AWAITED


class Client:
    """Asks for one answer after the other, and comes again half a second after a refusal."""

    def __init__(self, name: str, known: int, tokens: int) -> None:
        self.name, self.known, self.tokens = name, known, tokens
        self.length = self.answers = self.refusals = 0
        self._rests_until = 0.0

    def turn(self, manager: BlockManager, admission: Admission, clock: HandClock) -> None:
        if clock() < self._rests_until:
            return
        is_open = self.name in manager.sessions
        try:
            if not is_open:
                self._open(manager, admission)
            self.length += 1
            manager.grow(self.name, self.length - 1, self.length)
            manager.table(self.name).length = self.length
            if self.length == self.tokens:
                manager.close(self.name)
                self.length, self.answers = 0, self.answers + 1
        except NoRoom:
            self._rests_until, self.refusals = clock() + 0.5, self.refusals + 1
            if is_open:
                self.length -= 1
                admission.sent_away(manager.table(self.name))
                manager.close(self.name)

    def _open(self, manager: BlockManager, admission: Admission) -> None:
        known = max(self.known, self.length)
        spare = admission.spare(manager, is_new=not self.length)
        manager.open(self.name, self.tokens, known, spare)
        if self.length:
            admission.came_again(self.name)
        manager.grow(self.name, 0, known)
        self.length = known


def test_a_long_answer_ends_however_many_short_ones_come() -> None:
    clock = HandClock()
    manager, admission = manager_of(64), Admission(clock)
    long = Client("long", 1000, 40 * BLOCK)
    short = [Client(f"s{number}", 60, 300) for number in range(12)]
    while not long.answers and clock() < 60:
        clock.seconds += 0.01
        for each in (long, *short):
            each.turn(manager, admission, clock)
    assert long.answers == 1
    assert long.refusals < 5
    assert sum(each.answers for each in short) > 20
    assert sum(each.refusals for each in short) > 20  # the manager was full all the time


def test_two_long_answers_that_do_not_fit_together_end_one_after_the_other() -> None:
    clock = HandClock()
    manager, admission = manager_of(32), Admission(clock)
    long = [Client(f"l{number}", 100, 28 * BLOCK) for number in range(2)]
    while not all(each.answers for each in long) and clock() < 120:
        clock.seconds += 0.01
        for each in long:
            if not each.answers:
                each.turn(manager, admission, clock)
    assert [each.answers for each in long] == [1, 1]
