"""Faults and what they cost: `python -m benchmarks.chaos [--seconds 60] [--json FILE]`.

Nodes that hold a model each serve streams while a seeded schedule kills, stalls or sends away one
node or worker after the other, and starts it again. Every answer is held against transformers.
"""

import argparse
import asyncio
import random
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import psutil
import uvloop

from benchmarks.models import model_folder, prompt_ids, references
from benchmarks.report import Gate, Report
from client.async_client import Client
from client.cli.demo_nodes import DemoNode, DemoNodes, NodeSpec
from client.network import open_links
from swarm.errors import SwarmError
from swarm.invites import Invite
from swarm.model_spec import BUILT_IN
from swarm.records import Advert

PROMPT, NEW = 16, 400
PROMPTS = 4
NODES = 3
SLOWDOWN = 4.0  # so that an answer takes seconds, as with models that people use
MEMORY_BYTES = 32_000_000  # the whole of swarm-tiny, and KV for sessions
READY_SECONDS = 180.0
STALL_SECONDS = 10.0
FELT_SECONDS = 15.0  # after a fault, in which a pause is laid to it
KINDS = ("kill", "kill worker", "stall", "leave")
PAUSE_GATES = {"kill": (1.0, 4.0), "leave": (None, 0.3), "stall": (None, 8.0)}  # median, p95
FINISHED_GATE = 0.95


@dataclass(frozen=True, slots=True)
class Pause:
    """The longest time between two pieces of one stream, after a fault."""

    fault: str
    seconds: float
    is_affected: bool  # the stream had to go elsewhere


@dataclass(slots=True)
class Fault:
    """What was done, and when."""

    kind: str
    at: float


@dataclass
class Tally:
    """What became of the streams."""

    finished: int = 0
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    pauses: list[Pause] = field(default_factory=list)


class Cluster:
    """Nodes that fail and are started again."""

    def __init__(self, nodes: DemoNodes) -> None:
        self._nodes = nodes
        self.invite = ""
        self.there: dict[str, DemoNode] = {}
        self.families: set[int] = set()

    async def begin(self) -> str:
        """Start the host and the others; returns the invite."""
        names = [f"node{number}" for number in range(NODES)]
        self.there[names[0]] = await self._start(names[0], "--host", "--swarm", "chaos")
        self.invite = await self.there[names[0]].invite()
        for name in names[1:]:
            await self.start(name)
        return self.invite

    async def start(self, name: str) -> None:
        """Start a node of this name, which joins again if it was there before."""
        self.there[name] = await self._start(name, "--join", self.invite)

    async def _start(self, name: str, *how: str) -> DemoNode:
        return await self._nodes.start(NodeSpec(name, MEMORY_BYTES, SLOWDOWN), *how)

    async def until_ready(self) -> None:
        """Wait until all nodes serve; raises SwarmError with what they say if they do not."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not self._is_ready():  # noqa: ASYNC110 - lines of other processes
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            states = "; ".join(f"{name} {node.state()}" for name, node in self.there.items())
            raise SwarmError(f"The nodes are not ready: {states}") from error

    def _is_ready(self) -> bool:
        return all(node.state().startswith("is ready") for node in self.there.values())

    def family(self, name: str) -> list[psutil.Process]:
        """The processes of a node, itself first."""
        own = psutil.Process(self.there[name].process.pid)
        found = [own, *own.children(recursive=True)]
        self.families |= {each.pid for each in found}
        return found

    def worker(self, name: str) -> psutil.Process:
        """The process that computes for a node."""
        return next(each for each in self.family(name) if "node.worker" in each.cmdline())

    def left_over(self) -> list[int]:
        """Processes of nodes that have ended, which have not."""
        alive = {each.pid for name in self.there for each in self.family(name)}
        return [pid for pid in self.families - alive if _is_ours(pid)]


def _is_ours(pid: int) -> bool:
    try:
        words = " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return False
    return "node.worker" in words or "p2pd" in words or "swarm.node" in words


class Chaos:
    """One run: streams without end, and faults one after the other."""

    def __init__(self, cluster: Cluster, client: Client, expected: dict[int, list[int]]) -> None:
        self._cluster, self._client, self._expected = cluster, client, expected
        self.tally = Tally()
        self._fault: Fault | None = None

    async def stream(self, number: int, until: float) -> None:
        """Ask one prompt after the other until it is time."""
        seeds = random.Random(number)
        while perf_counter() < until:
            await self._ask(seeds.randrange(PROMPTS))

    async def _ask(self, seed: int) -> None:
        prompt, gaps = prompt_ids(PROMPT, seed), _Gaps()
        options = {"max_tokens": NEW, "temperature": 0.0, "speculate": 0}
        try:
            async with self._client.stream(prompt, timeout_seconds=60.0, **options) as pieces:
                async for _ in pieces:
                    gaps.note(self._fault)
                generation = pieces.generation
        except SwarmError as error:
            self.tally.failed[f"{type(error).__name__} after {gaps.count} pieces"] += 1
            return
        self.tally.finished += 1
        self.tally.wrong += list(generation.token_ids) != self._expected[seed]
        if gaps.fault:
            pause = Pause(gaps.fault.kind, gaps.longest, generation.replays > 0)
            self.tally.pauses.append(pause)

    async def inject_faults(
        self, seed: int, kinds: Sequence[str], every: float, until: float
    ) -> None:
        """One fault after the other, each when all nodes are ready again."""
        chance = random.Random(seed)
        faults = {
            "kill": self._kill,
            "kill worker": self._kill_worker,
            "stall": self._stall,
            "leave": self._leave,
        }
        while perf_counter() < until:
            await asyncio.sleep(every)
            await self._cluster.until_ready()
            kind = chance.choice(kinds)
            victim = chance.choice(sorted(self._cluster.there))
            self._cluster.family(victim)
            self._fault = Fault(kind, perf_counter())
            await faults[kind](victim)

    async def _kill(self, name: str) -> None:
        self._cluster.there[name].process.kill()
        await self._cluster.start(name)

    async def _kill_worker(self, name: str) -> None:
        self._cluster.worker(name).kill()

    async def _stall(self, name: str) -> None:
        process = self._cluster.there[name].process
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(STALL_SECONDS)
        process.send_signal(signal.SIGCONT)

    async def _leave(self, name: str) -> None:
        process = self._cluster.there[name].process
        process.send_signal(signal.SIGTERM)
        await process.wait()
        await self._cluster.start(name)


@dataclass
class _Gaps:
    """The longest time between two pieces of one stream while a fault could be felt."""

    fault: Fault | None = None
    longest: float = 0.0
    count: int = 0
    _last: float = field(default_factory=perf_counter)

    def note(self, fault: Fault | None) -> None:
        """A piece came; this was the last fault."""
        now, before = perf_counter(), self._last
        self._last = now
        self.count += 1
        if fault and self.count > 1 and before < fault.at + FELT_SECONDS and now > fault.at:
            if self.fault is not fault:
                self.fault, self.longest = fault, 0.0
            self.longest = max(self.longest, now - max(before, fault.at))


@asynccontextmanager
async def open_cluster() -> AsyncIterator[tuple[Cluster, Client]]:
    """Hold the nodes and a client."""
    with tempfile.TemporaryDirectory() as state:
        async with DemoNodes(Path(state), lambda _name, _line: None) as nodes:
            cluster = Cluster(nodes)
            invite = await cluster.begin()
            await cluster.until_ready()
            async with Client(invite, state=Path(state)) as client:
                yield cluster, client
            nodes.running = [each for each in nodes.running if each.process.returncode is None]


async def sessions_held(invite: str) -> int:
    """How many sessions all stages say that they hold."""
    async with open_links(Invite.parse(invite)) as links:
        adverts = await links.board.read(Advert)
    return sum(stage.sessions for each in adverts.values() for stage in each.stages)


async def run(arguments: argparse.Namespace, report: Report) -> None:
    """The whole run."""
    folder = model_folder(BUILT_IN, Path())
    expected = await asyncio.to_thread(references, folder, PROMPTS, PROMPT, NEW)
    async with open_cluster() as (cluster, client):
        chaos = Chaos(cluster, client, expected)
        until = perf_counter() + arguments.seconds
        injecting = chaos.inject_faults(arguments.seed, arguments.kinds, arguments.every, until)
        streams = (chaos.stream(number, until) for number in range(arguments.clients))
        await asyncio.gather(injecting, *streams)
        await cluster.until_ready()
        await asyncio.sleep(Advert.TTL_SECONDS / 3)  # adverts say how many sessions there are
        held, left = await sessions_held(cluster.invite), cluster.left_over()
    tell(report, chaos.tally)
    report.add("left", "sessions", held, "", Gate(0))
    report.add("left", "processes of ended nodes", len(left), "", Gate(0))


def tell(report: Report, tally: Tally) -> None:
    """Note what became of the streams, and their pauses by kind of fault."""
    failed = tally.failed.total()
    share = tally.finished / max(tally.finished + failed, 1)
    report.add("streams", "finished", tally.finished, "")
    report.add("streams", "share finished", share, "", Gate(FINISHED_GATE, at_most=False))
    report.add("streams", "wrong", tally.wrong, "", Gate(0))
    for cause, count in tally.failed.items():
        report.add("streams", f"broken: {cause}", count, "")
    for kind in sorted({pause.fault for pause in tally.pauses}):
        felt = sorted(p.seconds for p in tally.pauses if p.fault == kind and p.is_affected)
        report.add(kind, "streams that went elsewhere", len(felt), "")
        if felt:
            middle, high = PAUSE_GATES.get(kind, (None, None))
            report.add(kind, "pause, median", median(felt), "s", middle and Gate(middle))
            late = felt[min(len(felt) - 1, int(0.95 * len(felt)))]
            report.add(kind, "pause, p95", late, "s", high and Gate(high))
            report.add(kind, "pause, worst", felt[-1], "s")


def main() -> None:
    """Read the command line, run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between faults")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = Report("faults and what they cost", seconds=f"{arguments.seconds:g}")
    uvloop.run(run(arguments, report))
    report.show()
    report.write(arguments.json)


if __name__ == "__main__":
    main()
