"""DemoNodes: four unlike node processes for the demo; started, watched and ended here."""

import asyncio
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Self

from swarm.commands.package_finder import command_of
from swarm.errors import BadModel, SwarmError
from swarm.model_spec import BYTES_PER_VALUE, PLANNED_TOKENS, ModelSpec

STOP_SECONDS = 5.0  # within which a node should leave
KILL_SECONDS = 15.0
INVITE = "invite: "
MEANING = {  # of the word that begins a line of a node, for somebody who waits
    "node": "starts",
    "offer": "is in no plan yet",
    "waiting": "waits",
    "spare": "waits",
    "plan": "loads, or compiles",
    "lost": "begins again",
    "paused": "is paused",
    "resumed": "begins again",
    "ready": "is ready",
}
OnLine = Callable[[str, str], None]  # name of the node, line


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node of the demo: what it is called, may use, and how much slower it is made."""

    name: str
    memory_bytes: int
    slowdown: float


class DemoNode:
    """One node process and what it has printed."""

    def __init__(self, spec: NodeSpec, process: Process, on_line: OnLine) -> None:
        self.spec = spec
        self.process = process
        self.lines: list[str] = []
        self._invite = ""
        self._told = asyncio.Event()  # the invite, or the end
        self._on_line = on_line
        self.reading = asyncio.create_task(self._read())

    async def invite(self) -> str:
        """The invite that a host prints; raises SwarmError if it ends without."""
        await self._told.wait()
        if not self._invite:
            raise SwarmError(f"The node {self.spec.name} ended: {self.last_words()}")
        return self._invite

    def state(self) -> str:
        """What it does or waits for, in its own words: the last turning point that it told."""
        told = (line for line in reversed(self.lines) if line.partition(": ")[0] in MEANING)
        line = next(told, "node: it has not begun")
        word, _, rest = line.partition(": ")
        return f"{MEANING[word]}: {rest}"

    def last_words(self) -> str:
        """The end of what it printed."""
        return " | ".join(self.lines[-3:]) or "it said nothing"

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            line = raw.decode(errors="replace").rstrip()
            self.lines.append(line)
            if line.startswith(INVITE):
                self._invite = line.removeprefix(INVITE)
                self._told.set()
            self._on_line(self.spec.name, line)
        self._told.set()


class DemoNodes:
    """Node processes with state folders of their own; leaving the block ends them all."""

    def __init__(self, folder: Path, on_line: OnLine) -> None:
        self._folder = folder
        self._on_line = on_line
        self.running: list[DemoNode] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(
        self, spec: NodeSpec, *how: str, command: Sequence[str] = command_of("swarm.node")
    ) -> DemoNode:
        """Start a node; `how` is --host or --join INVITE, and may say otherwise than the spec."""
        process = await asyncio.create_subprocess_exec(
            *command,
            *_flags_of(spec, self._folder / spec.name),
            *how,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
        )
        node = DemoNode(spec, process, self._on_line)
        self.running.append(node)
        return node

    def ended(self) -> DemoNode | None:
        """A node that is no longer there, if any."""
        gone = (node for node in self.running if node.process.returncode is not None)
        return next(gone, None)

    async def stop(self) -> list[str]:
        """Interrupt every node and wait; returns a complaint for each that did not end well."""
        running, self.running = self.running, []
        return [c for c in await asyncio.gather(*(_stop(each) for each in running)) if c]


def _flags_of(spec: NodeSpec, state: Path) -> Sequence[str]:
    return (
        *("--memory", f"{spec.memory_bytes}B", "--slowdown", str(spec.slowdown)),
        *("--name", spec.name, "--listen", "127.0.0.1", "--threads", "1", "--state", str(state)),
        *("--dtype", "f32"),  # the answers are compared, token by token, with a model in float32
    )


async def _stop(node: DemoNode) -> str:
    process, name = node.process, node.spec.name
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
    asked = perf_counter()
    try:
        async with asyncio.timeout(KILL_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
    code = await process.wait()
    took = perf_counter() - asked
    await node.reading
    if code:
        return f"{name} ended with code {code}: {node.last_words()}"
    return f"{name} took {took:.1f} s to leave" if took > STOP_SECONDS else ""


def node_specs_of(spec: ModelSpec) -> tuple[NodeSpec, ...]:
    """A large node, a medium one, and two small ones that can only serve layers together.

    Large and medium hold whole layers, each with room for one end of the model (embedding or
    head). What is left fits the small ones only if they share every layer 5 to 3, and no device
    can spare a unit: every other arrangement is too large somewhere.
    """
    if spec.layers < 4 or min(spec.kv_heads, spec.mlp_blocks) < 8:
        raise BadModel(
            f"{spec.name} is too small to be shown on four nodes.",
            "It takes 4 layers, 8 KV heads and 8 MLP blocks.",
        )
    many = spec.layers // 2
    few = (spec.layers - many) // 2
    shared = spec.layers - many - few
    more = (_five_eighths(spec.kv_heads), _five_eighths(spec.mlp_blocks))
    less = (spec.kv_heads - more[0], spec.mlp_blocks - more[1])
    whole = (spec.kv_heads, spec.mlp_blocks)
    end = spec.embedding_parameters * BYTES_PER_VALUE
    return (
        NodeSpec("large", shard_bytes(spec, many, *whole) + end, 1.0),
        NodeSpec("medium", shard_bytes(spec, few, *whole) + end, 1.5),
        NodeSpec("small", shard_bytes(spec, shared, *more), 1.0),
        NodeSpec("tiny", shard_bytes(spec, shared, *less), 2.0),
    )


def shard_bytes(spec: ModelSpec, layers: int, kv: int, mlp: int) -> int:
    """Memory for a shard and the KV of one session, with a margin far below one unit more."""
    unit = _kv_unit(spec) * layers
    exact = kv * unit + mlp * _mlp_unit(spec) * layers
    margin = 0.05 * min(unit, _mlp_unit(spec) * layers)
    return round((exact + margin) * BYTES_PER_VALUE)


def _kv_unit(spec: ModelSpec) -> float:
    """Values of one KV head in one layer: its weights and its cache."""
    tokens = min(PLANNED_TOKENS, spec.context)
    return spec.attention_parameters / spec.kv_heads + tokens * spec.kv_bytes(1, 1)


def _mlp_unit(spec: ModelSpec) -> float:
    return spec.mlp_parameters / spec.mlp_blocks


def _five_eighths(units: int) -> int:
    return max(units * 5 // 8, units // 2 + 1)
