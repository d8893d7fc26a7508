"""Demo: four unlike nodes on this machine join, elect, plan, generate, and are checked."""

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

from client.async_client import Client, Links, open_links
from client.cli.cast import Role, cast_of
from client.cli.demo_nodes import Crew
from client.cli.reference_model import generate_uncut, matching
from client.cli.swarm_status import Overview, read_overview
from client.cli.tables import DrawLayers, layers_of, route_line, show_peers, show_plan, show_planner
from client.cli.terminal import Screen, wrapped
from client.generation import Generation
from client.request import LocalModel, Question
from client.routing.live_plan import LivePlan, read_plan, trust_of
from swarm.commands.command_line import Parser, seconds_of
from swarm.errors import NoRoute, SwarmError
from swarm.invites import Invite
from swarm.model_spec import BUILT_IN

PROMPT = "Once upon a time"
READY_SECONDS = 300.0  # the first time kernels are compiled, which takes a slow machine long
LOOK_SECONDS = 0.5
TELLING = ("node:", "offer:", "plan:", "ready:", "lost:", "error:")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo showed."""

    overview: Overview
    live: LivePlan
    generation: Generation
    uncut: list[int]
    complaints: list[str]
    seconds: float

    @property
    def matches(self) -> int:
        """How many tokens agree from the start on."""
        return matching(self.generation.token_ids, self.uncut)

    @property
    def is_exact(self) -> bool:
        """Whether swarm and transformers agree in every token."""
        return list(self.generation.token_ids) == self.uncut

    def to_json(self) -> dict[str, Any]:
        """The demo's one object."""
        return {
            "exact": self.is_exact,
            "tokens": len(self.generation.token_ids),
            "peers": self.overview.to_json()["peers"],
            "planner": self.live.planner,
            "plan": self.live.plan.to_json(),
            "seconds": round(self.seconds, 2),
            "text": self.generation.text,
            "token_ids": list(self.generation.token_ids),
            "complaints": self.complaints,
        }


def main(arguments: Sequence[str], draw: DrawLayers) -> int:
    """Run the demo; returns 0 if every token agrees and every node left well."""
    given = _parser().parse_args(arguments)
    screen = Screen()
    stage = Demo(screen, draw, given.timeout, is_quiet=given.json)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(stage.play(given.prompt, given.max_tokens))
    if given.json:
        screen.json(outcome.to_json())
    else:
        _conclude(screen, outcome)
    return 0 if outcome.is_exact and not outcome.complaints else 1


class Demo:
    """The acts of the demo, in order."""

    def __init__(
        self, screen: Screen, draw: DrawLayers, timeout_seconds: float, *, is_quiet: bool
    ) -> None:
        self._screen = screen
        self._draw = draw
        self._timeout_seconds = timeout_seconds
        self._is_quiet = is_quiet
        self._started = perf_counter()

    async def play(self, prompt: str, max_tokens: int) -> Outcome:
        """Start nodes, wait for their plan, generate, compare, stop; raises SwarmError."""
        torch.set_num_threads(1)
        local = await asyncio.to_thread(LocalModel.read, BUILT_IN)
        question = Question(prompt, None, self._timeout_seconds, {"max_tokens": max_tokens})
        request = local.request(question)
        with tempfile.TemporaryDirectory(prefix="swarm-demo-") as folder:
            async with Crew(Path(folder), self._tell) as crew:
                invite = await self._assemble(crew, cast_of(local.spec))
                uncut = await asyncio.to_thread(generate_uncut, BUILT_IN, request)
                async with open_links(invite) as links:
                    overview, live = await self._wait_until_ready(crew, links, invite)
                    self._show(overview, live)
                    generation = await self._generate(invite, links, question)
                complaints = await crew.stop()
        seconds = perf_counter() - self._started
        return Outcome(overview, live, generation, uncut, complaints, seconds)

    async def _assemble(self, crew: Crew, cast: Sequence[Role]) -> Invite:
        self._say(f"Starting {len(cast)} nodes on this machine, with unlike memory and speed:")
        host = await crew.start(cast[0], "--host", "--model", BUILT_IN)
        invite = await host.invite()
        for role in cast[1:]:
            await crew.start(role, "--join", invite)
        return Invite.parse(invite)

    async def _wait_until_ready(
        self, crew: Crew, links: Links, invite: Invite
    ) -> tuple[Overview, LivePlan]:
        """Wait until every shard of a plan over all nodes is served."""
        ends_at = perf_counter() + self._timeout_seconds
        while perf_counter() < ends_at:
            overview = await read_overview(links.board, invite)
            with suppress(NoRoute):
                live = await read_plan(links.board, links.channel, trust_of(invite))
                if _is_served(live, overview, len(crew.members)):
                    return overview, live
            if gone := crew.ended():
                raise SwarmError(f"The node {gone.role.name} ended: {gone.last_words()}")
            await asyncio.sleep(LOOK_SECONDS)
        for member in crew.members:
            self._screen.note(f"{member.role.name:>6} {member.state()}")
        raise SwarmError(
            f"The nodes were not ready within {self._timeout_seconds:.0f} s.",
            "Try again: what was compiled meanwhile is kept. A slow machine needs --timeout 900.",
        )

    def _show(self, overview: Overview, live: LivePlan) -> None:
        if self._is_quiet:
            return
        self._screen.line()
        show_peers(self._screen, overview)
        show_planner(self._screen, overview)
        show_plan(self._screen, live, overview, self._draw)
        self._screen.line()

    async def _generate(self, invite: Invite, links: Links, question: Question) -> Generation:
        client = Client(invite, connect=lambda _invite: nullcontext(links))
        self._say(f"> {question.prompt}", end="")
        async with client, client.ask(question) as pieces:
            async for piece in pieces:
                self._say(piece, end="")
            self._say("")
            return pieces.generation

    def _say(self, text: str, end: str = "\n") -> None:
        if not self._is_quiet:
            self._screen.piece(text + end)

    def _tell(self, name: str, line: str) -> None:
        if line.startswith(TELLING):
            seconds = perf_counter() - self._started
            told = f"{seconds:5.1f} s  {name:>6}  {line}"
            self._say(wrapped(told, self._screen.width, indent=17))


def _is_served(live: LivePlan, overview: Overview, nodes: int) -> bool:
    """Whether every node has a part in the plan, and its leaders offer exactly these stages."""
    planned = {
        (stage.start, stage.end, tuple((s.peer, s.kv, s.mlp) for s in stage.shards))
        for pipeline in live.plan.pipelines
        for stage in pipeline.stages
    }
    offered = {
        (stage.start, stage.end, tuple((m.peer, m.kv, m.mlp) for m in stage.members))
        for stage in overview.stages
    }
    return len(list(live.plan.shards())) == nodes and planned <= offered


def _conclude(screen: Screen, outcome: Outcome) -> None:
    generation, overview = outcome.generation, outcome.overview
    screen.line()
    screen.line(f"route: {route_line(generation.route, overview)}")
    for timing in generation.timings:
        spent = (timing.queue_seconds, timing.compute_seconds, timing.network_seconds)
        queue, compute, network = (f"{seconds:.3f} s" for seconds in spent)
        screen.line(f"  {layers_of(timing):<7} queue {queue}, compute {compute}, network {network}")
    first, speed = generation.ttft_seconds, generation.tokens_per_second
    screen.line(f"first token after {first:.2f} s, {speed:.1f} tokens/s")
    for complaint in outcome.complaints:
        screen.note(f"error: {complaint}")
    screen.line(f"{outcome.seconds:.0f} s in all; the same prompt with transformers alone:")
    screen.line(f"{outcome.matches} of {len(outcome.uncut)} tokens match")


def _parser() -> Parser:
    made = Parser(prog="swarm demo", description="Four unlike nodes on this machine, checked.")
    made.add_argument("--json", action="store_true", help="one JSON object")
    made.add_argument("--max-tokens", type=int, default=48, metavar="N", help="default: 48")
    made.add_argument("--prompt", default=PROMPT, metavar="TEXT", help=f"default: {PROMPT}")
    made.add_argument(
        *("--timeout",),
        type=seconds_of,
        default=READY_SECONDS,
        metavar="SECONDS",
        help=f"for the nodes to become ready (default: {READY_SECONDS:.0f})",
    )
    return made
