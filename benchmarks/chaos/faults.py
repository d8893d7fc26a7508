"""The faults: each befalls one node that serves, and is over when the node is well again."""

import asyncio
import logging
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

import psutil

from benchmarks.chaos.cluster import READY_SECONDS, Cluster
from swarm.task_set import TaskSet

logger = logging.getLogger(__name__)

STALL_SECONDS = 10.0
CUT_SECONDS = 20.0
SPARED = 2  # nodes that serve beside the victim


@dataclass(slots=True)
class Fault:
    """What was done, and when."""

    kind: str
    at: float


Befall = Callable[[Cluster, str], Awaitable[None]]


async def _kill(cluster: Cluster, name: str) -> None:
    """A power cut, and the node is started again."""
    cluster.there[name].process.kill()
    await cluster.start(name)


async def _kill_planner(cluster: Cluster, name: str) -> None:
    """The same to whoever makes the plans, or to this one while that is nobody."""
    await _kill(cluster, cluster.planner() or name)


async def _kill_worker(cluster: Cluster, name: str) -> None:
    if worker := cluster.worker(name):
        worker.kill()


async def _kill_p2pd(cluster: Cluster, name: str) -> None:
    cluster.daemon(name).kill()


async def _stall(cluster: Cluster, name: str) -> None:
    await _stopped_for_a_while(cluster.family(name)[0])


async def _stall_worker(cluster: Cluster, name: str) -> None:
    if worker := cluster.worker(name):
        await _stopped_for_a_while(worker)


async def _stall_p2pd(cluster: Cluster, name: str) -> None:
    await _stopped_for_a_while(cluster.daemon(name))


async def _stopped_for_a_while(process: psutil.Process) -> None:
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(STALL_SECONDS)
    with suppress(psutil.NoSuchProcess):  # it was given up meanwhile
        process.send_signal(signal.SIGCONT)


async def _leave(cluster: Cluster, name: str) -> None:
    """An orderly end, and the node is started again."""
    process = cluster.there[name].process
    process.send_signal(signal.SIGTERM)
    await process.wait()
    await cluster.start(name)


async def _pause(cluster: Cluster, name: str) -> None:
    """The owner wants the devices for a while."""
    process = cluster.there[name].process
    process.send_signal(signal.SIGUSR1)
    await asyncio.sleep(STALL_SECONDS)
    process.send_signal(signal.SIGUSR2)


async def _cut_off(cluster: Cluster, name: str) -> None:
    """Nothing from or to its host arrives for a while, and nothing tells so."""
    cluster.ground.cut(name)
    try:
        await asyncio.sleep(CUT_SECONDS)
    finally:
        cluster.ground.mend(name)


async def _replace(cluster: Cluster, name: str) -> None:
    """A stranger joins, and when it serves somebody else leaves for good."""
    newcomer = await cluster.start_another()
    while newcomer not in cluster.ready():  # noqa: ASYNC110 - lines of another process
        await asyncio.sleep(0.1)
    leaving = cluster.there.pop(name).process
    leaving.send_signal(signal.SIGTERM)
    await leaving.wait()


FAULTS: dict[str, Befall] = {
    "kill": _kill,
    "kill planner": _kill_planner,
    "kill worker": _kill_worker,
    "kill p2pd": _kill_p2pd,
    "stall": _stall,
    "stall worker": _stall_worker,
    "stall p2pd": _stall_p2pd,
    "leave": _leave,
    "pause": _pause,
    "replace": _replace,
    "partition": _cut_off,
}
NEEDS_HOSTS = {"partition"}


class Schedule:
    """One fault after the other, each on a node that serves, never on the last ones."""

    def __init__(self, cluster: Cluster, seed: int, kinds: Sequence[str]) -> None:
        self._cluster = cluster
        self._chance = random.Random(seed)
        self._kinds = list(kinds)
        self._victims: set[str] = set()  # whose fault is not over
        self.faults: list[Fault] = []
        self.counts: Counter[str] = Counter()

    async def run(self, every: float, over: asyncio.Event) -> None:
        """Inject faults until it is over, each kind as often as the others, then let all heal."""
        async with TaskSet() as tasks:
            while not over.is_set():
                await asyncio.sleep(every)
                if len(sound := self._sound()) > SPARED:  # else they have enough to bear
                    tasks.create("a fault", self._befall(self._chance.choice(sound)))
            await tasks.wait(READY_SECONDS)

    def _sound(self) -> list[str]:
        return [name for name in self._cluster.ready() if name not in self._victims]

    async def _befall(self, victim: str) -> None:
        least = min(self.counts[kind] for kind in self._kinds)
        kind = self._chance.choice([k for k in self._kinds if self.counts[k] == least])
        self._cluster.family(victim)
        self.counts[kind] += 1
        self._victims.add(victim)
        self.faults.append(Fault(kind, perf_counter()))
        logger.info("%s of %s", kind, victim)
        try:
            await FAULTS[kind](self._cluster, victim)
        finally:
            self._victims.discard(victim)
