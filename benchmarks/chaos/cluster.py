"""Cluster: nodes that fail and are started again, and what their families leave behind."""

import asyncio
import re
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from client.async_client import Client
from client.cli.demo_nodes import DemoNode, DemoNodes, NodeSpec
from client.network import open_links
from swarm.commands.package_finder import command_of
from swarm.errors import SwarmError
from swarm.invites import Invite
from swarm.records import Advert

SLOWDOWN = 4.0  # so that an answer takes seconds, as with models that people use
MEMORY_BYTES = 32_000_000  # the whole of swarm-tiny, and KV for sessions
READY_SECONDS = 180.0
HOST = "host"
HOSTING = ("--host", "--swarm", "chaos", "--key", "lantern-harbour-quiet")
PLANNED = re.compile(r"^plan: .* by planner (?P<planner>\w+) in its term (?P<term>\d+)")


class Cluster:
    """Nodes that fail and are started again."""

    def __init__(self, nodes: DemoNodes, state: Path) -> None:
        self._nodes = nodes
        self.state = state  # of the client: the host of the invite may be gone
        self.invite = ""
        self._invites: dict[str, str] = {}  # of delegates: they may plan and admit, as the host
        self.there: dict[str, DemoNode] = {}
        self.families: set[int] = set()
        self._extra = 0

    async def begin(self, count: int) -> str:
        """Start the host and the others; returns the invite."""
        await self.start(HOST)
        self.invite = await self.there[HOST].invite()
        for number in range(1, count):
            await self._start_new(f"node{number}")
        return self.invite

    async def start(self, name: str) -> None:
        """Start a node of this name, which comes back if it was there before."""
        joining = ("--join", self._invites.get(name, self.invite))
        spec = NodeSpec(name, MEMORY_BYTES, SLOWDOWN)
        self.there[name] = await self._nodes.start(spec, *(HOSTING if name == HOST else joining))

    async def start_another(self) -> str:
        """Start a node that was never there before; returns its name."""
        self._extra += 1
        name = f"extra{self._extra}"
        await self._start_new(name)
        return name

    async def _start_new(self, name: str) -> None:
        """Start a node with an invite of whoever may admit others and is there."""
        asked = self.ready() or [HOST]  # at first nobody serves yet
        for admitting in asked:
            if invite := await _delegates_invite(self.state / admitting):
                self._invites[name] = invite
                await self.start(name)
                return
        raise SwarmError(f"None of {', '.join(asked)} makes an invite.")

    async def until_ready(self, count: int = 0) -> None:
        """Wait until so many nodes serve, or all; raises SwarmError with what they say."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                while len(self.ready()) < (count or len(self.there)):  # noqa: ASYNC110 - others' lines
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            states = "; ".join(f"{name} {node.state()}" for name, node in self.there.items())
            raise SwarmError(f"The nodes are not ready: {states}") from error

    def ready(self) -> list[str]:
        """The nodes that say they serve."""
        told = {name: node.state() for name, node in self.there.items()}
        return sorted(name for name, state in told.items() if state.startswith("is ready"))

    def terms(self) -> dict[int, str]:
        """The end of the planner's id by the term of each plan that gave some node another part."""
        told = (PLANNED.search(line) for node in self._nodes.running for line in node.lines)
        return {int(each["term"]): each["planner"] for each in told if each}

    def planner(self) -> str | None:
        """The node that made the last plan, if it is there."""
        terms = self.terms()
        mark = f"({terms[max(terms)]})" if terms else "nobody"
        for name, node in self.there.items():
            if any(line.startswith("node: ") and mark in line for line in node.lines):
                return name
        return None

    def family(self, name: str) -> list[psutil.Process]:
        """The processes of a node, itself first."""
        own = psutil.Process(self.there[name].process.pid)
        found = [own, *own.children(recursive=True)]
        self.families |= {each.pid for each in found}
        return found

    def worker(self, name: str) -> psutil.Process | None:
        """The process that computes for a node, if there is one: another one may stand by."""
        workers = [each for each in self.family(name) if "node.worker" in each.cmdline()]
        return max(workers, key=lambda each: each.memory_info().rss, default=None)

    def daemon(self, name: str) -> psutil.Process:
        """The p2pd of a node."""
        return next(each for each in self.family(name) if each.name() == "p2pd")

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


async def _delegates_invite(state: Path) -> str:
    """An invite for one machine that may admit others, too; empty if none is made."""
    words = ("invite", "--delegate", "--state", str(state))
    made = await asyncio.create_subprocess_exec(
        *command_of("swarm"), *words, stdout=PIPE, stderr=DEVNULL
    )
    said, _ = await made.communicate()
    return said.decode().strip()


@asynccontextmanager
async def open_cluster(
    count: int, on_line: Callable[[str, str], None]
) -> AsyncIterator[tuple[Cluster, Client]]:
    """Hold the nodes and a client."""
    with tempfile.TemporaryDirectory() as state:
        async with DemoNodes(Path(state), on_line) as nodes:
            cluster = Cluster(nodes, Path(state))
            invite = await cluster.begin(count)
            await cluster.until_ready()
            async with Client(invite, state=Path(state)) as client:
                yield cluster, client
            nodes.running = [each for each in nodes.running if each.process.returncode is None]


async def sessions_held(cluster: Cluster) -> int:
    """How many sessions all stages say that they hold."""
    async with open_links(Invite.parse(cluster.invite), cluster.state) as links:
        adverts = await links.board.read(Advert)
    return sum(stage.sessions for each in adverts.values() for stage in each.stages)
