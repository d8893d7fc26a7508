"""A worker that hangs is noticed, avoided and ended; one that computes for long is not."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from node.worker import heartbeat
from node.worker.heartbeat import (
    ANSWER,
    HUNG_BEATS,
    SILENT_BEATS,
    STUCK_BEATS,
    Heartbeat,
    cpu_seconds_of,
)
from node.worker.messages import Broken
from swarm.task_set import TaskSet
from swarm.wire.messages import Fail
from tests.node.conftest import RunStand
from tests.node.stands import Stand, until
from tests.node.worker.test_worker_process import SECONDS, Worked, pid_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.001)


class Patient:
    """A pulse whose other end a test holds."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.settimeout(5)
        self.hung: list[str] = []
        self.cpu_seconds = 0.0  # as the system says
        self.heartbeat = Heartbeat(
            ours, self.hung.append, TaskSet(), cpu_seconds=lambda: self.cpu_seconds
        )

    async def answer(self, step_seconds: float, cpu_seconds: float) -> None:
        """Answer the next beat."""
        await asyncio.to_thread(self.theirs.recv, 1)
        self.theirs.send(ANSWER.pack(step_seconds, cpu_seconds))

    def close(self) -> None:
        self.heartbeat.close()
        self.theirs.close()


def test_a_worker_is_judged_from_its_first_answer_on() -> None:
    async def story() -> None:
        patient = Patient()
        for _ in range(3 * HUNG_BEATS):
            await asyncio.to_thread(patient.theirs.recv, 1)
        assert not patient.heartbeat.is_silent
        await patient.answer(0.0, 1.0)
        await until(lambda: patient.heartbeat.is_silent)
        assert patient.heartbeat._missed >= SILENT_BEATS
        await until(lambda: patient.hung)
        assert "answered nothing" in patient.hung[0]
        patient.close()

    asyncio.run(story())


def test_a_late_answer_ends_the_silence() -> None:
    async def story() -> None:
        patient = Patient()
        await patient.answer(0.0, 1.0)
        for missed in (SILENT_BEATS, HUNG_BEATS - 2):
            patient.heartbeat._missed = missed
            assert patient.heartbeat.is_silent
            patient.heartbeat._hear()
            patient.theirs.send(ANSWER.pack(0.0, 1.0))
            patient.heartbeat._hear()
            assert not patient.heartbeat.is_silent
        assert patient.hung == []
        patient.close()

    asyncio.run(story())


def test_a_silent_worker_that_computes_is_avoided_and_left_alone_for_longer() -> None:
    """On a machine with too much to do its pulse may wait for seconds."""

    async def story() -> None:
        patient = Patient()
        await patient.answer(0.0, 1.0)
        await until(lambda: patient.heartbeat._begun)
        patient.heartbeat._task.cancel()
        for missed in range(STUCK_BEATS + 1):
            patient.heartbeat._missed = missed
            patient.cpu_seconds = 1.0 + missed * heartbeat.BEAT_SECONDS
            assert bool(patient.heartbeat._trouble()) == (missed >= STUCK_BEATS)
        patient.heartbeat._missed, patient.cpu_seconds = HUNG_BEATS, 1.0
        assert "answered nothing" in patient.heartbeat._trouble()
        patient.close()

    asyncio.run(story())


def test_the_system_says_what_a_process_has_computed() -> None:
    before = cpu_seconds_of(os.getpid())
    while time.process_time() < before + 0.05:
        pass
    assert before < cpu_seconds_of(os.getpid()) <= time.process_time() + 0.05
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait(SECONDS)
    assert cpu_seconds_of(ended.pid) == 0.0


@pytest.mark.parametrize(
    ("step_seconds", "cpu_per_beat", "is_stuck"),
    [(100.0, 0.5, False), (0.0, 0.0, False), (100.0, 0.0, True)],
)
def test_only_a_step_that_computes_nothing_for_long_is_stuck(
    step_seconds: float, cpu_per_beat: float, is_stuck: bool
) -> None:
    async def story() -> None:
        patient = Patient()
        for beat in range(STUCK_BEATS + 1):
            patient.heartbeat._judge(step_seconds, 1.0 + beat * cpu_per_beat)
        assert bool(patient.heartbeat._trouble()) == is_stuck
        patient.close()

    asyncio.run(story())


def test_nobody_is_sent_to_a_silent_worker(at_stand: RunStand) -> None:
    async def story(stand: Stand) -> None:
        assert len(stand.server.adverts()) == 1
        stand.worker.is_silent = True
        assert stand.server.adverts() == []
        await stand.send(stand.open())
        assert stand.client.last(Fail).code == "stage_lost"
        stand.worker.is_silent = False
        await stand.open_session()
        assert len(stand.server.adverts()) == 1

    at_stand(story)


def test_a_stopped_worker_is_avoided_then_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.2)

    async def story() -> None:
        worked = await Worked().spawn()
        process = worked.process
        await until(lambda: process._heartbeat and process._heartbeat._begun, SECONDS)
        os.kill(pid_of(process), signal.SIGSTOP)
        await until(lambda: process.is_silent, SECONDS)
        broken: Broken = await worked.hear(Broken)
        assert broken.reason.startswith("the worker process hung and was killed: it has answered")
        assert process.ended.is_set()
        await process.close()

    asyncio.run(story())


ORPHAN = """
import socket, sys, threading
from node.worker.heartbeat import answer_beats
answer_beats(socket.socket(fileno=int(sys.argv[1])), lambda: 0.0)
print("ready", flush=True)
threading.Event().wait()  # the compute thread hangs
"""


def test_a_worker_whose_compute_thread_hangs_ends_with_its_node() -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", ORPHAN, str(theirs.fileno())]
    with theirs:
        child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        ours.close()
        assert child.wait(SECONDS) == 0
