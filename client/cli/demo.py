"""Demo: four unlike nodes on this machine join, elect, plan, generate, and are checked."""

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import uvloop

from client.async_client import Client
from client.cli.demo_nodes import DemoNodes, NodeSpec, node_specs_of
from client.cli.reference_model import generate_reference, matching
from client.cli.swarm_status import SwarmStatus, read_status
from client.cli.tables import DrawLayers, layers_of, route_line, show_peers, show_plan, show_planner
from client.cli.terminal import Terminal, wrapped
from client.generation import Generation
from client.network import Links, open_links
from client.request import LocalModel, Question, Request
from client.routing.live_plan import LivePlan, read_plan, trust_of
from swarm.errors import NoRoute, SwarmError
from swarm.invites import Invite
from swarm.model_spec import BUILT_IN

LOOK_SECONDS = 0.5
TELLING = ("node:", "offer:", "plan:", "ready:", "lost:", "error:")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo showed."""

    status: SwarmStatus
    live: LivePlan
    generation: Generation
    reference: list[int]
    complaints: list[str]
    seconds: float

    @property
    def matches(self) -> int:
        """How many tokens agree from the start on."""
        return matching(self.generation.token_ids, self.reference)

    @property
    def is_exact(self) -> bool:
        """Whether swarm and transformers agree in every token."""
        return list(self.generation.token_ids) == self.reference

    def to_json(self) -> dict[str, Any]:
        """The demo's one object."""
        return {
            "exact": self.is_exact,
            "tokens": len(self.generation.token_ids),
            "peers": self.status.to_json()["peers"],
            "planner": self.live.planner,
            "plan": self.live.plan.to_json(),
            "seconds": round(self.seconds, 2),
            "text": self.generation.text,
            "token_ids": list(self.generation.token_ids),
            "complaints": self.complaints,
        }


def run_demo(given: argparse.Namespace, draw: DrawLayers) -> int:
    """Run the demo; returns 0 if every token agrees and every node left well."""
    terminal = Terminal()
    demo = Demo(terminal, draw, given.timeout, is_quiet=given.json)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(demo.play(given.prompt, given.max_tokens))
    if given.json:
        terminal.json(outcome.to_json())
    else:
        _conclude(terminal, outcome)
    return 0 if outcome.is_exact and not outcome.complaints else 1


class Demo:
    """The steps of the demo, in order."""

    def __init__(
        self, terminal: Terminal, draw: DrawLayers, timeout_seconds: float, *, is_quiet: bool
    ) -> None:
        self._terminal = terminal
        self._draw = draw
        self._timeout_seconds = timeout_seconds
        self._is_quiet = is_quiet
        self._started = perf_counter()

    async def play(self, prompt: str, max_tokens: int) -> Outcome:
        """Start nodes, wait for their plan, generate, compare, stop; raises SwarmError."""
        torch.set_num_threads(1)
        local = await asyncio.to_thread(LocalModel.read, BUILT_IN)
        request = local.request(
            Question(prompt, None, self._timeout_seconds, {"max_tokens": max_tokens})
        )
        with tempfile.TemporaryDirectory(prefix="swarm-demo-") as folder:
            async with DemoNodes(Path(folder), self._tell) as nodes:
                invite = await self._start_nodes(nodes, node_specs_of(local.spec))
                reference = await asyncio.to_thread(generate_reference, BUILT_IN, request)
                async with open_links(invite) as links:
                    status, live = await self._wait_until_ready(nodes, links, invite)
                    self._show(status, live)
                    generation = await self._generate(invite, links, prompt, request)
                complaints = await nodes.stop()
        seconds = perf_counter() - self._started
        return Outcome(status, live, generation, reference, complaints, seconds)

    async def _start_nodes(self, nodes: DemoNodes, specs: Sequence[NodeSpec]) -> Invite:
        self._say(f"Starting {len(specs)} nodes on this machine, with unlike memory and speed:")
        host = await nodes.start(specs[0], "--host", "--model", BUILT_IN)
        invite = await host.invite()
        for spec in specs[1:]:
            await nodes.start(spec, "--join", invite)
        return Invite.parse(invite)

    async def _wait_until_ready(
        self, nodes: DemoNodes, links: Links, invite: Invite
    ) -> tuple[SwarmStatus, LivePlan]:
        """Wait until every shard of a plan over all nodes is served."""
        ends_at = perf_counter() + self._timeout_seconds
        while perf_counter() < ends_at:
            status = await read_status(links.board, invite)
            with suppress(NoRoute):
                live = await read_plan(links.board, links.channel, trust_of(invite))
                if _is_served(live, status, len(nodes.running)):
                    return status, live
            if gone := nodes.ended():
                raise SwarmError(f"The node {gone.spec.name} ended: {gone.last_words()}")
            await asyncio.sleep(LOOK_SECONDS)
        for node in nodes.running:
            self._terminal.note(f"{node.spec.name:>6} {node.state()}")
        raise SwarmError(
            f"The nodes were not ready within {self._timeout_seconds:.0f} s.",
            "Try again: what was compiled meanwhile is kept. A slow machine needs --timeout 900.",
        )

    def _show(self, status: SwarmStatus, live: LivePlan) -> None:
        if self._is_quiet:
            return
        self._terminal.line()
        show_peers(self._terminal, status)
        show_planner(self._terminal, status)
        show_plan(self._terminal, live, status, self._draw)
        self._terminal.line()

    async def _generate(
        self, invite: Invite, links: Links, prompt: str, request: Request
    ) -> Generation:
        client = Client(invite, connect=lambda _invite: nullcontext(links))
        self._say(f"> {prompt}", end="")
        async with client, client.ask(request) as pieces:
            async for piece in pieces:
                self._say(piece, end="")
            self._say("")
            return pieces.generation

    def _say(self, text: str, end: str = "\n") -> None:
        if not self._is_quiet:
            self._terminal.piece(text + end)

    def _tell(self, name: str, line: str) -> None:
        if line.startswith(TELLING):
            seconds = perf_counter() - self._started
            told = f"{seconds:5.1f} s  {name:>6}  {line}"
            self._say(wrapped(told, self._terminal.width, indent=17))


def _is_served(live: LivePlan, status: SwarmStatus, nodes: int) -> bool:
    """Whether every node has a part in the plan, and its leaders offer exactly these stages."""
    planned = {
        (stage.start, stage.end, tuple((s.peer, s.kv, s.mlp) for s in stage.shards))
        for pipeline in live.plan.pipelines
        for stage in pipeline.stages
    }
    offered = {
        (stage.start, stage.end, tuple((m.peer, m.kv, m.mlp) for m in stage.members))
        for stage in status.stages
    }
    return len(list(live.plan.shards())) == nodes and planned <= offered


def _conclude(terminal: Terminal, outcome: Outcome) -> None:
    generation, status = outcome.generation, outcome.status
    terminal.line()
    terminal.line(f"route: {route_line(generation.route, status)}")
    for timing in generation.timings:
        spent = (timing.queue_seconds, timing.compute_seconds, timing.network_seconds)
        queue, compute, network = (f"{seconds:.3f} s" for seconds in spent)
        terminal.line(
            f"  {layers_of(timing):<7} queue {queue}, compute {compute}, network {network}"
        )
    first, speed = generation.ttft_seconds, generation.tokens_per_second
    terminal.line(f"first token after {first:.2f} s, {speed:.1f} tokens/s")
    for complaint in outcome.complaints:
        terminal.note(f"error: {complaint}")
    terminal.line(f"{outcome.seconds:.0f} s in all; the same prompt with transformers alone:")
    terminal.line(f"{outcome.matches} of {len(outcome.reference)} tokens match")
