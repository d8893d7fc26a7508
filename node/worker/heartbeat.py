"""Heartbeat: how a node knows that a worker is alive, and a worker that its node is; by a socket.

The node asks every second; a thread of the worker answers how long the step that runs has taken,
and how much the process has computed so far. A stopped process does not answer. A step may take
long, but it computes: one that has hung does not. On a busy machine that thread may wait for long,
so the system is asked how much a silent process computes before it is given up.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

import psutil

from swarm.task_set import TaskSet

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
SILENT_BEATS = 3  # without an answer: nobody is sent there any more
HUNG_BEATS = 8  # without an answer, nor any computing: given up
STALLED_BEATS = 10  # in one step that computes nothing: others are told if it loads
STUCK_BEATS = 45  # in one step that computes nothing: longer than it may wait for another rank
COMPUTING_SHARE = 0.01  # of a core: this thread alone takes less
ANSWER = struct.Struct("!dd")  # seconds in the step that runs, seconds of CPU
PR_SET_PDEATHSIG = 1


class Heartbeat:
    """The node's side; it begins to judge with the worker's first answer: imports take long."""

    def __init__(
        self,
        ours: socket.socket,
        on_hung: Callable[[str], None],
        tasks: TaskSet,
        *,
        cpu_seconds: Callable[[], float],  # that the process has used: as the system says
    ) -> None:
        ours.setblocking(False)
        self._socket = ours
        self._on_hung = on_hung
        self._cpu_seconds_now = cpu_seconds
        self._begun = False
        self._missed = 0  # beats since the last answer: time that we slept ourselves counts for one
        self._stuck = 0
        self._cpu_seconds = 0.0
        self._task = tasks.create("a heartbeat", self._beat())

    @property
    def is_silent(self) -> bool:
        """Whether the worker has missed too many beats to be sent anything."""
        return self._missed >= SILENT_BEATS

    @property
    def is_stalled(self) -> bool:
        """Whether nothing is computed in a step that runs, as far as we hear."""
        return self.is_silent or self._stuck >= STALLED_BEATS

    def close(self) -> None:
        """Ask no more."""
        self._task.cancel()
        self._socket.close()

    async def _beat(self) -> None:
        while True:
            self._hear()
            if reason := self._trouble():
                self._on_hung(reason)
                return
            with contextlib.suppress(OSError):  # full, or gone: then no answer comes
                self._socket.send(b".")
                self._missed += self._begun
            await asyncio.sleep(BEAT_SECONDS)

    def _hear(self) -> None:
        try:
            heard = self._socket.recv(1 << 12)
        except OSError:
            return
        if len(heard) >= ANSWER.size:
            self._begun, self._missed = True, 0
            self._judge(*ANSWER.unpack(heard[-ANSWER.size :]))

    def _judge(self, step_seconds: float, cpu_seconds: float) -> None:
        is_idle = step_seconds < BEAT_SECONDS
        has_computed = cpu_seconds - self._cpu_seconds > COMPUTING_SHARE * BEAT_SECONDS
        self._stuck = 0 if is_idle or has_computed else self._stuck + 1
        self._cpu_seconds = cpu_seconds

    def _trouble(self) -> str:
        if self._missed >= (STUCK_BEATS if self._computes() else HUNG_BEATS):
            return f"it has answered nothing for {self._missed} beats"
        return "a step computes nothing any more" if self._stuck >= STUCK_BEATS else ""

    def _computes(self) -> bool:
        """Whether a process that is silent has computed since its last answer."""
        if self._missed < HUNG_BEATS:
            return False  # no matter
        computed = self._cpu_seconds_now() - self._cpu_seconds
        return computed > COMPUTING_SHARE * self._missed * BEAT_SECONDS


def cpu_seconds_of(pid: int) -> float:
    """What a process has computed so far, in seconds of CPU; 0 if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def answer_beats(theirs: socket.socket, step_seconds: Callable[[], float]) -> None:
    """The worker's side, in a thread of its own: answer until the node is gone, then end."""

    def answer() -> None:
        with contextlib.suppress(OSError):
            while theirs.recv(1 << 12):
                theirs.sendall(ANSWER.pack(step_seconds(), time.process_time()))
        os._exit(0)  # the node is gone: nothing here is worth keeping

    threading.Thread(target=answer, daemon=True, name="pulse").start()


def end_with_parent() -> None:
    """Let the kernel end this process with the one that started it, where it can."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
