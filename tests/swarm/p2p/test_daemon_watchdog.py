"""A p2pd is given up when it neither answers nor computes; one that waits for its turn is not."""

import asyncio

import pytest

from swarm.p2p import daemon_watchdog
from swarm.p2p.daemon_watchdog import HUNG_BEATS, STUCK_BEATS, watch_answers


class FakeDaemon:
    """Answers as it is told, beat by beat, and notes when it is killed."""

    def __init__(self, answers: list[bool], computing: list[float]) -> None:
        self.answers, self.computing = answers, computing  # CPU seconds, beat by beat
        self.p2p = object()
        self.ended, self.given_up = asyncio.Event(), asyncio.Event()
        self.asked = 0
        self.killed_after: list[int] = []

    @property
    def cpu_seconds(self) -> float:
        return sum(self.computing[: self.asked])

    async def is_answering(self) -> bool:
        is_answering = self.answers[self.asked]
        self.asked += 1
        if self.asked == len(self.answers):
            self.given_up.set()
        return is_answering

    def kill(self, _reason: str) -> None:
        self.killed_after.append(self.asked)


def killed_after(
    monkeypatch: pytest.MonkeyPatch, answers: list[bool], computing: list[float] | None = None
) -> list[int]:
    """The beats at which such a daemon is killed."""
    monkeypatch.setattr(daemon_watchdog, "BEAT_SECONDS", 0.001)

    async def story() -> list[int]:
        daemon = FakeDaemon(answers, computing or [])
        await watch_answers(daemon)  # type: ignore[arg-type]
        return daemon.killed_after

    return asyncio.run(story())


def test_it_is_killed_after_a_row_of_beats_without_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = [False] * HUNG_BEATS
    assert killed_after(monkeypatch, [True, *row, True]) == [1 + HUNG_BEATS]
    assert killed_after(monkeypatch, [*row[1:], True, *row[1:], True]) == []


def test_one_that_computes_meanwhile_has_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [False] * (STUCK_BEATS + 1)
    assert killed_after(monkeypatch, silent, [1.0] * len(silent)) == [STUCK_BEATS]


def test_what_it_computed_while_it_still_answered_gives_it_no_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beats = [True, True, *[False] * HUNG_BEATS, True]
    until_it_fell_silent = [5.0, 5.0, 5.0]
    assert killed_after(monkeypatch, beats, until_it_fell_silent) == [2 + HUNG_BEATS]
