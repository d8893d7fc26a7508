"""Two node processes on loopback, each with half of a model, and a client; ended afterwards."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import psutil

from client.async_client import Client
from client.cli.demo_nodes import DemoNode, DemoNodes, NodeSpec, shard_bytes
from client.generation import Generation
from node.engine.throughput import bytes_per_weight
from swarm.errors import SwarmError
from swarm.model_spec import BYTES_PER_VALUE, PLANNED_TOKENS, ModelSpec

READY_SECONDS = 120.0
SESSIONS_MEMORY = "512MiB"


@dataclass(frozen=True, slots=True)
class SmallSwarm:
    """A swarm that serves, and who asks it."""

    client: Client
    members: tuple[DemoNode, ...]
    ready_seconds: float

    async def ask(self, prompt: list[int], tokens: int) -> Generation:
        """One greedy generation."""
        return await self.client.generate(
            prompt, max_tokens=tokens, temperature=0.0, speculate=0, timeout_seconds=300
        )

    def processes(self) -> dict[str, psutil.Process]:
        """Every process of the nodes, and the client's daemon, by what it is."""
        found = {}
        for number, member in enumerate(self.members, 1):
            node = psutil.Process(member.process.pid)
            found[f"node {number}"] = node
            for child in node.children(recursive=True):
                kind = "worker" if "node.worker" in child.cmdline() else "p2pd"
                found[f"{kind} {number}"] = child
        found["client"] = psutil.Process()
        for each in psutil.Process().children():
            if "p2pd" in each.name():
                found["client's p2pd"] = each
        return found

    def resident_bytes(self) -> dict[str, int]:
        """Of each process, by what it is."""
        return {kind: each.memory_info().rss for kind, each in self.processes().items()}

    def cpu_seconds(self) -> dict[str, float]:
        """Of each process so far, by what it is."""
        times = {kind: each.cpu_times() for kind, each in self.processes().items()}
        return {kind: each.user + each.system for kind, each in times.items()}


def memory_of(spec: ModelSpec, folder: Path, quant: str) -> int:
    """Memory with which the planner gives a node half of the layers, not one more."""
    half = shard_bytes(spec, spec.layers // 2, spec.kv_heads, spec.mlp_blocks)
    end = spec.embedding_parameters * BYTES_PER_VALUE
    shrinking = BYTES_PER_VALUE / bytes_per_weight(folder, quant)
    context = min(PLANNED_TOKENS, spec.context)
    kept = 2 * end + spec.layers * context * spec.kv_bytes(spec.kv_heads, BYTES_PER_VALUE)
    return round((half + end - kept) / shrinking + kept)


@asynccontextmanager
async def small_swarm(
    spec: ModelSpec, folder: Path, *, quant: str = "", sessions_per_step: int = 0
) -> AsyncIterator[SmallSwarm]:
    """Hold two nodes of one thread each that serve `folder` in two stages."""
    memory = memory_of(spec, folder, quant)
    flags = ["--sessions-memory", SESSIONS_MEMORY, "--sessions-per-step", str(sessions_per_step)]
    flags += ["--quant", quant] if quant else []
    with tempfile.TemporaryDirectory() as state:
        is_ready = {name: asyncio.Event() for name in ("first", "second")}

        def hear(name: str, line: str) -> None:
            if line.startswith("ready:"):
                is_ready[name].set()

        async with DemoNodes(Path(state), hear) as nodes:
            start = perf_counter()
            first = NodeSpec("first", memory, 1.0)
            host = await nodes.start(
                first, "--host", "--model", str(folder), "--swarm", "bench", *flags
            )
            invite = await host.invite()
            other = await nodes.start(NodeSpec("second", memory, 1.0), "--join", invite, *flags)
            async with asyncio.timeout(READY_SECONDS):
                await asyncio.gather(*(each.wait() for each in is_ready.values()))
            ready_seconds = perf_counter() - start
            async with Client(invite, state=Path(state)) as client:
                swarm = SmallSwarm(client, (host, other), ready_seconds)
                stages = (await swarm.ask([3], 1)).route
                if len(stages) != 2:
                    raise SwarmError(f"The plan is not of two stages: {stages}.")
                yield swarm
