"""A thousand peers in one process: `python -m benchmarks.thousand [--peers 1000] [--hours 1]`.

The node's own control code - membership, announcer, election, planner loop, plan store - on virtual
time and a simulated network, with a fault every minute. Devices load by the clock; signatures are
counted, and what one costs is measured apart.
"""

import argparse
import asyncio
import gc
import logging
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.first_fit import first_fit
from benchmarks.report import Gate, Report, cpu_seconds_of
from benchmarks.simulated_peer import SWARM, Findings, Setting, SimulatedPeer
from node.control.next_plan import PlanDocument, next_plan
from swarm.dht.board import plain_key
from swarm.dht.record_validator import SwarmValidator
from swarm.hardware import Device
from swarm.model_spec import ModelSpec
from swarm.plan import Plan
from swarm.records import Capability, record_to_list
from swarm.testing.simulated_network import SimulatedNetwork
from swarm.testing.virtual_time import BEGIN_SECONDS, VirtualLoop, run_virtually
from swarm.trust.identity import Identity

LAYERS = 16
# One head and one block to a layer: no stage is divided, so that searches take little of the run.
SPEC = ModelSpec(
    "simulated", "digest", "llama", LAYERS, 1024, 1, 1, 128, 128, 32_000, 2048,
    attention_parameters=3_000_000, mlp_parameters=9_000_000,
)  # fmt: skip
LAYER_BYTES = 4 * SPEC.layer_parameters
END_BYTES = 4 * SPEC.embedding_parameters
LAYERS_HELD = (2, 4, 6, 8)  # by devices, besides both ends and room for sessions
SKEW_SECONDS = 1.0  # of wall clocks, either way
JOINING_SECONDS = 20.0  # within which the first peers begin
CALM_SECONDS = 180.0  # before the first fault
FAULT_SECONDS = 60.0
KINDS = ("kill", "restart", "restart without disk", "pause", "part", "join", "leave")
BACK_SECONDS = 300.0  # until a killed peer is started again
PAUSE_SECONDS, PART_SECONDS = 40.0, 45.0
PART_SHARE = 0.2
TELL_SECONDS = 600  # virtual ones, between words on how far it is
COVERED_GATE = 99.9  # percent of the time
WALL_GATE = 1800.0
Search = Callable[..., tuple[Plan, str]]


@dataclass
class Watch:
    """What was seen, second by second."""

    seconds: int = 0
    short_seconds: int = 0  # when there was too little memory
    covered: int = 0
    unplanned: int = 0  # in a row, now
    longest_unplanned: int = 0
    double_planned: int = 0
    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))


class Swarm:
    """Peers that fail and come back."""

    def __init__(self, setting: Setting, draw: random.Random) -> None:
        self.setting = setting
        self.watch = Watch()
        self.peers: list[SimulatedPeer] = []
        self._draw = draw
        self._count = 0

    @property
    def up(self) -> list[SimulatedPeer]:
        """Who is there."""
        return [peer for peer in self.peers if peer.is_up]

    def join(self) -> None:
        """A newcomer."""
        self._count += 1
        draw = self._draw
        memory = END_BYTES + LAYER_BYTES * (draw.choice(LAYERS_HELD) + 1)
        speed = draw.uniform(2e10, 3e11)
        device = Device(0, "cpu", "cpu", memory, speed, speed * 10)
        skew = draw.uniform(-SKEW_SECONDS, SKEW_SECONDS)
        peer = SimulatedPeer(f"peer{self._count}", self.setting, device, skew)
        self.peers.append(peer)
        peer.start()

    async def gather(self, peers: int) -> None:
        """The first ones come."""
        for _ in range(peers):
            self.join()
            await asyncio.sleep(JOINING_SECONDS / peers)

    async def fail(self, kind: str) -> None:
        """One fault, which may take until shortly before the next one."""
        self.watch.faults[kind] += 1
        loop, network = asyncio.get_running_loop(), self.setting.network
        victim = self._draw.choice(self.up)
        match kind:
            case "kill":
                await victim.kill()
                loop.call_later(BACK_SECONDS, victim.start)
            case "restart" | "restart without disk":
                await victim.kill(wipes=kind == "restart without disk")
                await asyncio.sleep(5.0)
                victim.start()
            case "pause":
                network.paused_until[victim.peer] = loop.time() + PAUSE_SECONDS
            case "part":
                share = round(PART_SHARE * len(self.up))
                network.part({each.peer for each in self._draw.sample(self.up, share)})
                await asyncio.sleep(PART_SECONDS)
                network.heal()
            case "join":
                self.join()
            case "leave":
                self.peers.remove(victim)
                await victim.leave()

    def told_so_far(self, hours: float) -> str:
        """How far it is: a run takes half an hour."""
        watch, broken = self.watch, len(self.setting.findings.broken)
        uncovered = watch.seconds - watch.short_seconds - watch.covered
        return (
            f"{watch.seconds / 3600:.2f} of {hours:g} h in {time.process_time():.0f} s of a core:"
            f" {sum(watch.faults.values())} faults, {len(self.setting.findings.plans)} plans,"
            f" {uncovered} s not all layers served, {broken} invariants broken"
        )

    def look(self) -> None:
        """See what is true now."""
        watch, network = self.watch, self.setting.network
        there = [p for p in self.up if not network.is_paused(p.peer)]
        there = [p for p in there if network.side_of(p.peer) == 0]
        watch.seconds += 1
        if sum(p.device.memory_bytes - END_BYTES for p in there) < 2 * LAYERS * LAYER_BYTES:
            watch.short_seconds += 1
        else:
            watch.covered += covered_layers(there) == LAYERS
        planners = sum(peer.is_planning for peer in there)
        watch.unplanned = 0 if planners else watch.unplanned + 1
        watch.longest_unplanned = max(watch.longest_unplanned, watch.unplanned)
        watch.double_planned += planners > 1


def covered_layers(there: Sequence[SimulatedPeer]) -> int:
    """How many layers are served by a stage all of whose devices are there and ready."""
    ready = {f"{peer.peer}/0": peer for peer in there if peer.is_ready}
    covered: set[int] = set()
    for peer in ready.values():
        if peer.held and peer.held.leads:
            stage = peer.held.stage
            if all(shard.device in ready for shard in stage.shards):
                covered |= set(range(stage.start, stage.end))
    return len(covered)


async def live(swarm: Swarm, peers: int, hours: float) -> None:
    """The peers come, then a fault every minute."""
    await swarm.gather(peers)
    await asyncio.sleep(CALM_SECONDS)
    loop, kinds = asyncio.get_running_loop(), random.Random(1)
    end = loop.time() + hours * 3600.0
    faults: set[asyncio.Task[None]] = set()
    next_fault = loop.time()
    while loop.time() < end:
        if loop.time() >= next_fault:
            next_fault += FAULT_SECONDS
            faults.add(asyncio.ensure_future(swarm.fail(kinds.choice(KINDS))))
        swarm.look()
        if swarm.watch.seconds % TELL_SECONDS == 0:
            print(swarm.told_so_far(hours), file=sys.stderr, flush=True)
        await asyncio.sleep(1.0)
    await asyncio.gather(*faults)
    await asyncio.gather(*(peer.kill() for peer in swarm.up))


@dataclass
class Searching:
    """The real search for some hours, whose real seconds are kept; then first fit."""

    hours: float
    seconds: list[float] = field(default_factory=list)

    def __call__(self, *facts: Any, **options: Any) -> tuple[Plan, str]:
        """What the planner's loop calls."""
        if time.monotonic() > BEGIN_SECONDS + 3600.0 * self.hours:
            return first_fit(*facts, **options)
        began = time.perf_counter()
        found = next_plan(*facts, **options)
        self.seconds.append(time.perf_counter() - began)
        return found


class Failures(logging.Handler):
    """Counts an island that caught something among what must not be."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(logging.ERROR)
        self._findings = findings

    def emit(self, record: logging.LogRecord) -> None:
        """Note what was logged as an error."""
        self._findings.broken.append(f"failed: {record.getMessage()}")


def simulated(
    peers: int, hours: float, *, seed: int = 0, search: Search = next_plan
) -> tuple[Swarm, VirtualLoop]:
    """Live through it; returns what was seen, and the loop that counted the seconds."""
    loop = VirtualLoop()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        swarm = Swarm(Setting(SimulatedNetwork(), SPEC, Path(folder)), random.Random(seed))
        failures = Failures(swarm.setting.findings)
        logging.getLogger().addHandler(failures)
        read_once = lru_cache(8)(PlanDocument.of_bytes)  # all would read the same bytes
        with (
            patch("node.control.planner_loop.next_plan", search),
            patch.object(PlanDocument, "of_bytes", read_once),
        ):
            run_virtually(loop, live(swarm, peers, hours))
        logging.getLogger().removeHandler(failures)
    return swarm, loop


def signature_seconds() -> tuple[float, float]:
    """What signing one capability takes, and judging it."""
    identity, rounds = Identity.throwaway(), 200
    validator = SwarmValidator(SWARM, identity)
    device = Device(0, "cpu", "cpu", 1, 1.0, 1.0)
    values = record_to_list(Capability("digest", [device], [], "host", True, 0.0))
    key = plain_key(SWARM, Capability)
    ends = [time.time() + 30.0 + number / rounds for number in range(rounds)]
    signed = [validator.signed_record(key, identity.peer, values, end) for end in ends]

    def sign() -> None:
        for end in ends:
            validator.signed_record(key, identity.peer, values, end)

    def judge() -> None:
        for record in signed:
            if problem := validator.problem_of(record):
                raise AssertionError(problem)

    return cpu_seconds_of(sign) / rounds, cpu_seconds_of(judge) / rounds


def tell(report: Report, swarm: Swarm, loop: VirtualLoop, wall_seconds: float) -> None:
    """The figures of one run."""
    watch, traffic, findings = swarm.watch, swarm.setting.network.traffic, swarm.setting.findings
    seconds, peers = loop.time() - BEGIN_SECONDS, len(swarm.peers)
    part = f"{peers} peers, {seconds / 3600:.2g} h"
    enough = max(1, watch.seconds - watch.short_seconds)
    own = wall_seconds - loop.thread_seconds
    add = report.add
    add(part, "invariants broken", len(findings.broken), "", Gate(0))
    add(part, "all layers served", 100.0 * watch.covered / enough, "%", Gate(COVERED_GATE, False))
    add(part, "too little memory", watch.short_seconds, "s")
    add(part, "wall time without searches", own, "s", Gate(WALL_GATE))
    add(part, "in threads, searches mostly", loop.thread_seconds, "s")
    add(part, "faults", sum(watch.faults.values()), "")
    add(part, "plans", len(findings.plans), "")
    add(part, "shards loaded", findings.loads, "")
    add(part, "ready shards given up", findings.lost_shards, "")
    add(part, "longest without a planner", watch.longest_unplanned, "s")
    add(part, "more than one planner", watch.double_planned, "s")
    each = peers * seconds
    add(part, "questions asked by a peer", sum(traffic.questions.values()) / each, "1/s")
    busiest = max(traffic.answered.values(), default=0)
    add(part, "questions to the most asked peer", busiest / seconds, "1/s")
    add(part, "reads of the board by a peer", sum(traffic.reads.values()) / each, "1/s")
    add(part, "records read by a peer", traffic.records_read / each, "1/s")
    sign, judge = signature_seconds()
    add(part, "signing by a peer", 1e3 * sign * traffic.signatures / each, "ms/s")
    add(part, "judging by a peer, at most", 1e3 * judge * traffic.records_read / each, "ms/s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, and show the figures."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument(
        "--planned-hours", type=float, default=math.inf, help="then first fit replaces the search"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    gc.set_threshold(100_000, 50, 1000)  # millions of objects live on: a fifth of the time at 150
    began, began_computing = time.perf_counter(), time.process_time()
    search = Searching(options.planned_hours)
    swarm, loop = simulated(options.peers, options.hours, seed=options.seed, search=search)
    report = Report("A thousand peers in one process")
    computed = time.process_time() - began_computing
    tell(report, swarm, loop, time.perf_counter() - began)
    report.add("the real search", "searches", len(search.seconds), "")
    report.add("the real search", "seconds of all", sum(search.seconds), "s")
    report.add("the real search", "the longest", max(search.seconds, default=0.0), "s")
    report.add("all of it", "seconds of a core", computed, "s")
    for line in swarm.setting.findings.broken[:20]:
        print(line)
    report.show()
    report.write(options.json)


if __name__ == "__main__":
    main()
