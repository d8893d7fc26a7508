"""Cluster: nodes that fail and are started again, and what they say of themselves."""

import asyncio
import re
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import psutil

from benchmarks.chaos.ground import Ground, Loopback
from benchmarks.chaos.remains import Remains, is_daemon, temporary_files_in
from client.async_client import Client
from client.cli.demo_nodes import DemoNode, DemoNodes, NodeSpec, shard_bytes
from client.network import open_links
from swarm.checkpoint.folder import find_model, read_spec
from swarm.commands.package_finder import command_of
from swarm.errors import SwarmError
from swarm.invites import Invite
from swarm.model_spec import BUILT_IN, BYTES_PER_VALUE
from swarm.records import Advert

SLOWDOWN = 4.0  # so that an answer takes seconds, as with models that people use
WHOLE_BYTES = 32_000_000  # the whole of swarm-tiny, and KV for sessions
HALF_SESSIONS = ("--sessions-memory", "6MB")  # a half's plan knows of one session
READY_SECONDS = 180.0
HOST = "host"
KEY = "lantern-harbour-quiet"  # of a private swarm: whoever may admit others may plan, too
HOSTING = ("--host", "--swarm", "chaos", "--key", KEY)
PLANNED = re.compile(r"^plan: .* by planner (?P<planner>\w+) in its term (?P<term>\d+)")
LAYERS = re.compile(r"^plan: layers (?P<layers>[\d-]+)")
SLOW = "s to leave"  # in complaints
WORKERS = ("node.worker", "node.worker.standby")


def half_bytes() -> int:
    """Memory for half of the layers of swarm-tiny with an end of it, and not for one more."""
    spec = read_spec(find_model(BUILT_IN), BUILT_IN)
    layers = shard_bytes(spec, spec.layers // 2, spec.kv_heads, spec.mlp_blocks)
    return layers + spec.embedding_parameters * BYTES_PER_VALUE


@dataclass(frozen=True, slots=True)
class Seat:
    """What a node has, and how it is run."""

    memory_bytes: int = WHOLE_BYTES
    more: tuple[str, ...] = ()
    command: tuple[str, ...] = command_of("swarm.node")


def half() -> Seat:
    """The seat of a node with half of the layers."""
    return Seat(half_bytes(), HALF_SESSIONS)


@dataclass(slots=True)
class Cluster:
    """Nodes that fail and are started again."""

    nodes: DemoNodes
    state: Path  # of the client: the host of the invite may be gone
    ground: Ground = field(default_factory=Loopback)
    invite: str = ""
    seats: dict[str, Seat] = field(default_factory=dict)
    there: dict[str, DemoNode] = field(default_factory=dict)
    remains: Remains = field(default_factory=Remains)
    _invites: dict[str, str] = field(default_factory=dict)  # of delegates: they admit, as the host
    _extra: int = 0

    async def begin(self, seats: Mapping[str, Seat]) -> str:
        """Start the host and the others; returns the invite."""
        self.seats |= seats
        await self.start(HOST)
        self.invite = await self.there[HOST].invite()
        for name in seats:
            if name != HOST:
                await self._start_new(name)
        return self.invite

    async def start(self, name: str) -> None:
        """Start a node of this name, which comes back if it was there before."""
        seat = self.seats.get(name, Seat())
        joining = ("--join", self._invites.get(name, self.invite))
        how = HOSTING if name == HOST else joining
        self.there[name] = await self.nodes.start(
            NodeSpec(name, seat.memory_bytes, SLOWDOWN),
            *(*how, *seat.more, *self.ground.options(name)),
            command=(*self.ground.before(name), *seat.command),
        )

    async def start_another(self, seat: Seat | None = None, invite: str = "") -> str:
        """Start a node that was never there before; returns its name."""
        self._extra += 1
        name = f"extra{self._extra}"
        self.seats[name] = seat or Seat()
        if invite:
            self._invites[name] = invite
            await self.start(name)
        else:
            await self._start_new(name)
        return name

    async def invite_by_those_there(self) -> str:
        """An invite of whoever may admit others and serves; raises SwarmError.

        Of the founder it makes one that may admit others, too; else of one whom it made so.
        """
        asked = self.ready() or [HOST]  # at first nobody serves yet
        for more, admitting in product((("--delegate",), ()), asked):
            if invite := await _invite_made(self.state / admitting, *more):
                return invite
        raise SwarmError(f"None of {', '.join(asked)} makes an invite.")

    async def _start_new(self, name: str) -> None:
        self._invites[name] = await self.invite_by_those_there()
        await self.start(name)

    async def until_ready(self, count: int = 0) -> None:
        """Wait until so many nodes serve, or all; raises SwarmError with what they say."""
        await self.until(lambda: len(self.ready()) >= (count or len(self.there)), "ready")

    async def until_settled(self) -> None:
        """Wait until all nodes serve or are spare; raises SwarmError with what they say."""
        count = len(self.there)
        await self.until(lambda: len(self.ready()) + len(self.spares()) == count, "settled")

    async def until(
        self, fact: Callable[[], bool], what: str, seconds: float = READY_SECONDS
    ) -> None:
        """Wait for a fact about the nodes; raises SwarmError with what they say."""
        try:
            async with asyncio.timeout(seconds):
                while not fact():  # noqa: ASYNC110 - lines of other processes
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            states = "; ".join(f"{name} {node.state()}" for name, node in self.there.items())
            raise SwarmError(f"The nodes are not {what}: {states}") from error

    def ready(self) -> list[str]:
        """The nodes that say they serve."""
        return self._in_state("is ready")

    def spares(self) -> list[str]:
        """The nodes that say the plan does not need them."""
        return self._in_state("waits: device")

    def _in_state(self, start: str) -> list[str]:
        told = {name: node.state() for name, node in self.there.items()}
        return sorted(name for name, state in told.items() if state.startswith(start))

    def layers(self, name: str) -> str:
        """The layers of the last part that a node was given, as it said; "" if none."""
        found = [LAYERS.match(line) for line in self.there[name].lines]
        return next((each["layers"] for each in reversed(found) if each), "")

    def terms(self) -> dict[int, str]:
        """The end of the planner's id by the term of each plan that gave some node another part."""
        told = (PLANNED.search(line) for node in self.nodes.running for line in node.lines)
        return {int(each["term"]): each["planner"] for each in told if each}

    def planner(self) -> str | None:
        """The node that made the last plan, if it is there."""
        terms = self.terms()
        mark = f"({terms[max(terms)]})" if terms else "nobody"
        for name in self.there:
            if mark in self._own_line(name):
                return name
        return None

    def tail(self, name: str) -> str:
        """The end of a node's peer id, as it tells it."""
        return self._own_line(name).partition("(")[2].partition(")")[0]

    def _own_line(self, name: str) -> str:
        lines = self.there[name].lines
        return next((line for line in lines if line.startswith("node: ")), "")

    def family(self, name: str) -> list[psutil.Process]:
        """The processes of a node, itself first; none if it has ended."""
        try:
            own = psutil.Process(self.there[name].process.pid)
            found = [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        self.remains.note(found)
        return found

    def workers(self, name: str) -> list[psutil.Process]:
        """The worker of a node and the one that stands by, as far as they are there.

        A worker that stood by keeps its name when it serves: the elder of two serves.
        """
        found = [each for each in self.family(name) if {*WORKERS} & {*_words_of(each)}]
        return sorted(found, key=lambda each: each.create_time())

    def worker(self, name: str) -> psutil.Process | None:
        """The process that computes for a node, if there is one."""
        return next(iter(self.workers(name)), None)

    def daemon(self, name: str) -> psutil.Process:
        """The p2pd of a node."""
        return next(each for each in self.family(name) if is_daemon(each))

    def note_end(self) -> None:
        """From now on nodes and client end in order only, and should leave nothing."""
        self.remains.note(psutil.Process().children(recursive=True))
        self.remains.note_end()

    async def end(self) -> list[str]:
        """Let all nodes leave; returns complaints about those that ended with an error."""
        running = self.nodes.running
        self.nodes.running = [each for each in running if each.process.returncode is None]
        complaints = await self.nodes.stop()
        return [each for each in complaints if SLOW not in each]  # busy cores make all of them late


def _words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


async def _invite_made(state: Path, *more: str) -> str:
    """What `swarm invite` says of a node's state; empty if none is made."""
    words = ("invite", *more, "--state", str(state))
    made = await asyncio.create_subprocess_exec(
        *command_of("swarm"), *words, stdout=PIPE, stderr=DEVNULL
    )
    said, _ = await made.communicate()
    return said.decode().strip()


@asynccontextmanager
async def open_cluster(
    seats: Mapping[str, Seat], on_line: Callable[[str, str], None], ground: Ground
) -> AsyncIterator[tuple[Cluster, Client]]:
    """Hold nodes that serve, and a client; what they leave behind is noted when they have ended."""
    with tempfile.TemporaryDirectory() as folder, temporary_files_in(Path(folder, "tmp")) as own:
        state = Path(folder, "state")
        async with DemoNodes(state, on_line) as nodes:
            cluster = Cluster(nodes, state, ground)
            invite = await cluster.begin(seats)
            await cluster.until_settled()
            async with Client(invite, state=state) as client:
                yield cluster, client
                cluster.note_end()
            cluster.remains.complaints = await cluster.end()
        cluster.remains.look(state, own, cluster.there)


async def sessions_held(cluster: Cluster) -> int:
    """How many sessions all stages say that they hold."""
    adverts = await adverts_of(cluster)
    return sum(stage.sessions for each in adverts.values() for stage in each.stages)


async def adverts_of(cluster: Cluster) -> Mapping[str, Advert]:
    """What peers offer, as a newcomer sees it."""
    invite = await cluster.invite_by_those_there()
    async with open_links(Invite.parse(invite), cluster.state) as links:
        return await links.board.read(Advert)
