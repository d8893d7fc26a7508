"""Nodes of one swarm on virtual time: the real control code, and workers that load by the clock.

Hours pass in seconds: whenever nothing is ready to run, the time jumps to what falls due next.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from node.device.local_device import LocalDevice
from node.device.open_devices import MeasuredDevice
from node.node import Node
from node.worker.messages import Broken, Load, Loaded, Unload
from node.worker.worker_handle import OnAnswer, WorkerProcess
from swarm.hardware import Device, Link
from swarm.plan import Plan
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.testing.virtual_time import VirtualLoop, run_virtually
from swarm.wire.messages import Message
from tests.node.memberships import LAYER_BYTES
from tests.node.nodes import node_of

LOAD_SECONDS = 2.0
SPEED = 1e9  # bytes a second
MEASURED_SECONDS = 1.0  # between looks at a node's links
LINKS = 8  # that a node tells of
NEVER = math.inf


class RunningTime:
    """The running loop's time, as the clock of a world."""

    def now(self) -> float:
        """The loop's seconds."""
        return asyncio.get_running_loop().time()

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """Through the running loop."""
        asyncio.get_running_loop().call_later(seconds, call)


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a story on virtual time."""
    run_virtually(VirtualLoop(), story())


class ClockworkWorker(WorkerProcess):
    """Stands for a worker: loads in so many seconds, or fails as a test wants."""

    is_behind = is_silent = is_stalled = False

    def __init__(self, note: Callable[[str, str], None]) -> None:
        self._heard: list[OnAnswer] = []
        self._note = note
        self.load_seconds = LOAD_SECONDS
        self.step_seconds = 0.01
        self.cause = ""  # why there is no shard at the end of a load
        self.dies = False  # at the end of each load
        self.ended = asyncio.Event()

    def listen(self, on_answer: OnAnswer) -> None:
        """Tell somebody what comes."""
        self._heard.append(on_answer)

    def order(self, message: Message) -> None:
        """Load, or note that a shard is dropped."""
        match message:
            case Load(group=group, spec=spec):
                self._note("load", f"[{spec['start']},{spec['end']})")
                if self.load_seconds < NEVER:
                    loop = asyncio.get_running_loop()
                    loop.call_later(self.load_seconds, self._finish, group)
            case Unload():
                self._note("unload", "")

    def lose(self) -> None:
        """Lose the shard; what comes of the next loads is as a test has said."""
        self.say(Broken("", "its worker was killed"))

    async def restart(self) -> None:
        """Live again."""
        self.ended.clear()

    def _finish(self, group: str) -> None:
        if self.dies:
            self.ended.set()
        if cause := "the worker process ended" if self.dies else self.cause:
            self.say(Broken(group, cause))
        else:
            self.say(Loaded(group, 1, 1, 100_000, self.step_seconds))

    def say(self, answer: Message) -> None:
        """Let the node hear something of its worker."""
        for hear in self._heard:
            hear(answer)


@dataclass
class VirtualNode:
    """A node with a device, and its loops."""

    name: str
    node: Node
    worker: ClockworkWorker
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def peer(self) -> str:
        return peer_named(self.name)

    @property
    def device(self) -> LocalDevice:
        return self.node._devices.by_index[0]

    @property
    def plan(self) -> Plan | None:
        """The plan that it follows."""
        return self.node._plan_store.plan

    @property
    def plans(self) -> bool:
        """Whether it holds the planner's lease."""
        return self.node._election.holds

    def say(self, **facts: Any) -> None:
        """Change its capability, and publish that."""
        announcer = self.node._announcer
        assert announcer is not None
        announcer.capability = replace(announcer.capability, **facts)
        announcer.publish_soon()


@dataclass(frozen=True)
class Happening:
    """What a device was told, or a planner decided."""

    at: float
    name: str
    what: str  # load, unload, plan
    layers: str


class VirtualSwarm:
    """Nodes that join, end, and come back; and what happened."""

    def __init__(self, folder: Path, *, key: str = "secret") -> None:
        """Without a key the swarm is open: nobody here may plan in it."""
        self.world = MemoryWorld(clock=RunningTime())
        self._key = key
        self.nodes: dict[str, VirtualNode] = {}
        self.happenings: list[Happening] = []
        self._folder = folder
        self._names: dict[str, str] = {}  # by peer
        self._last_plans: dict[str, Plan] = {}  # by planner
        self._in_force: Plan | None = None

    async def join(self, name: str, layers: float, *, speed: float = SPEED) -> VirtualNode:
        """A node begins, with its state of before if it has been here."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        node = node_of(self.world, name, folder, [], key=self._key)
        node._config = replace(node._config, sessions_bytes=0, founds=False)
        worker = ClockworkWorker(lambda what, which: self._note(name, what, which))
        device = Device(0, "cpu", "cpu", int(layers * LAYER_BYTES), speed, speed * 4)
        node._add_devices([MeasuredDevice(device, worker)])
        made = self.nodes[name] = VirtualNode(name, node, worker)
        self._names[made.peer] = name
        made.say(host=name)
        watch = node._board_watcher.run
        loops = watch, node._reconcile, node._publish, lambda: self._measure(node)
        made.tasks = [asyncio.create_task(each()) for each in loops]
        return made

    async def begin(self, names: str, layers: float) -> None:
        """So many nodes of equal size join, and serve."""
        for name in names:
            await self.join(name, layers)
        await self.watch(30.0)

    def kill(self, name: str) -> None:
        """It ends without a word."""
        made = self.nodes.pop(name)
        for task in (*made.tasks, *made.node._devices._reconciling.values()):
            task.cancel()
        self.world.kill(made.peer)

    async def leave(self, name: str) -> None:
        """It ends as planned."""
        made = self.nodes.pop(name)
        for task in made.tasks:
            task.cancel()
        await made.node._leave()
        self.world.kill(made.peer)

    async def watch(self, seconds: float) -> None:
        """Let time pass, and note every plan that a planner changes to."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._note_plans()
            await asyncio.sleep(0.1)

    def since(self, at: float, what: str) -> list[Happening]:
        """What happened of a kind from a moment on."""
        return [each for each in self.happenings if each.at >= at and each.what == what]

    @property
    def planner(self) -> str:
        """The node that plans."""
        return next(name for name, made in self.nodes.items() if made.plans)

    def served(self) -> set[int]:
        """The layers that somebody serves."""
        stages = (s for each in self.nodes.values() for s in each.node._server.adverts())
        return {layer for stage in stages for layer in range(stage.start, stage.end)}

    def _note_plans(self) -> None:
        for name, made in self.nodes.items():
            plan = made.plan
            if made.plans and plan is not None and plan != self._last_plans.get(name):
                self._last_plans[name] = plan
                if plan != self._in_force:  # else a new planner goes on with it
                    self._note(name, "plan", self._words_of(plan))
                self._in_force = plan

    async def _measure(self, node: Node) -> None:
        """Tell of the links to others, which are all alike."""
        announcer, membership = node._announcer, node._membership
        assert announcer is not None
        while True:
            await asyncio.sleep(MEASURED_SECONDS)
            others = sorted(membership.capabilities.keys() - {membership.me})
            announcer.note_links([Link(peer, 0.002, 1e8) for peer in others[:LINKS]])

    def _note(self, name: str, what: str, layers: str) -> None:
        self.happenings.append(Happening(time.monotonic(), name, what, layers))

    def _words_of(self, plan: Plan) -> str:
        """Who holds what, in short."""
        lines = [
            " ".join(
                f"{'+'.join(self._names.get(s.peer, s.peer) for s in stage.shards)}"
                f"[{stage.start},{stage.end})"
                for stage in pipeline.stages
            )
            for pipeline in plan.pipelines
        ]
        return " | ".join(lines)
