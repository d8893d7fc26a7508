"""What a stranger costs honest clients: `python -m benchmarks.stranger [--rounds 5] [--json FILE]`.

Two nodes serve eight clients, in turns beside a seeded fuzzer over real libp2p and beside a burner
that takes as much of the processor as the fuzzer did. Every answer is held against transformers.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import psutil
import uvloop

from benchmarks.models import model_folder, prompt_ids, references
from benchmarks.report import Gate, Report, ratio_of
from benchmarks.small_swarm import SmallSwarm, small_swarm
from swarm.checkpoint.folder import read_spec
from swarm.errors import SwarmError
from swarm.model_spec import BUILT_IN

CLIENTS = 8
PROMPT = 16
NEW = 32
START_SECONDS = 6.0  # for the other process to import and to join
GROWTH_GATE = 256.0  # MiB that any process may grow by
BURNER = """
import sys, time
share, end = float(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while (now := time.monotonic()) < end:
    stop = time.process_time() + 0.02 * share
    while time.process_time() < stop: pass
    time.sleep(max(0.0, now + 0.02 - time.monotonic()))
print('{"sent": {}, "cpu_seconds": %f}' % time.process_time())
"""


@dataclass
class Tally:
    """What the clients of one round saw."""

    seconds: list[float] = field(default_factory=list)  # per token, of each answer
    wrong: int = 0
    failed: int = 0
    answers: int = 0


async def ask_on(swarm: SmallSwarm, expected: dict[int, list[int]], end: float) -> Tally:
    """Eight clients, each asking again and again until `end` on the clock."""
    tally = Tally()

    async def keep_asking(seed: int) -> None:
        while perf_counter() < end:
            start = perf_counter()
            try:
                answer = await swarm.ask(prompt_ids(PROMPT, seed), NEW)
            except SwarmError as error:
                tally.failed += 1
                print(f"    a request failed: {error}", file=sys.stderr)
                await asyncio.sleep(1)
                continue
            tally.seconds.append((perf_counter() - start) / len(answer.token_ids))
            tally.answers += 1
            tally.wrong += list(answer.token_ids) != expected[seed]

    await asyncio.gather(*(keep_asking(seed) for seed in range(CLIENTS)))
    return tally


async def beside(
    command: list[str], swarm: SmallSwarm, expected: dict[int, list[int]], seconds: float
) -> tuple[Tally, dict[str, Any]]:
    """The clients' tally beside another process, and what that process says at its end."""
    other = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE
    )
    tally = await ask_on(swarm, expected, perf_counter() + seconds)
    out, _ = await asyncio.wait_for(other.communicate(), seconds + 60)
    return tally, json.loads(out.splitlines()[-1])


@dataclass
class Rounds:
    """What all rounds together saw."""

    ours: list[float] = field(default_factory=list)  # seconds per token beside the stranger
    theirs: list[float] = field(default_factory=list)  # and beside the burner
    tallies: list[Tally] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)

    def total(self, name: str) -> int:
        """The sum of one count of the clients."""
        return sum(getattr(tally, name) for tally in self.tallies)


async def run_rounds(swarm: SmallSwarm, folder: Path, options: argparse.Namespace) -> Rounds:
    """Stranger and burner in turns, the second with the share of a core that the first took."""
    expected, rounds = references(folder, CLIENTS, PROMPT, NEW), Rounds()
    invite = await swarm.members[0].invite()
    await ask_on(swarm, expected, perf_counter() + 3)
    seconds = options.seconds / options.rounds
    whole = seconds + START_SECONDS
    for number in range(options.rounds):
        words = (invite, seconds, options.rate, options.seed + number)
        attack = ["-m", "benchmarks.fuzzer", *map(str, words)]
        strange, told = await beside(attack, swarm, expected, whole)
        share = min(1.0, told["cpu_seconds"] / whole)
        burnt, _ = await beside(["-c", BURNER, str(share), str(whole)], swarm, expected, whole)
        rounds.ours.append(median(strange.seconds))
        rounds.theirs.append(median(burnt.seconds))
        rounds.tallies += [strange, burnt]
        rounds.sent.update(told["sent"])
    return rounds


async def measure(report: Report, options: argparse.Namespace) -> bool:
    """All rounds in one swarm; True if every gate holds."""
    folder = model_folder(BUILT_IN, Path())
    async with small_swarm(read_spec(folder, BUILT_IN), folder) as swarm:
        processes, before = swarm.processes(), swarm.resident_bytes()
        rounds = await run_rounds(swarm, folder, options)
        ended = sum(not each.is_running() for each in processes.values())
        growth = [_grown(each, before[kind]) for kind, each in processes.items()]
    for kind, count in sorted(rounds.sent.items()):
        report.add("stranger", kind, count, "messages")
    for each, (one, other) in enumerate(zip(rounds.ours, rounds.theirs, strict=True), 1):
        report.add("clients", f"round {each}, stranger / burner", one / other, "x time")
    ratio = ratio_of(rounds.ours, rounds.theirs)
    report.add("clients", "time per token, stranger / burner", ratio, "x time", Gate(1.5))
    report.add("clients", "answers", rounds.total("answers"), "answers")
    report.add("clients", "answers that differ", rounds.total("wrong"), "answers", Gate(0))
    report.add("clients", "requests that failed", rounds.total("failed"), "requests", Gate(0))
    report.add("nodes", "processes that ended", ended, "processes", Gate(0))
    report.add("nodes", "largest growth of a process", max(growth), "MiB", Gate(GROWTH_GATE))
    return all(each.gate is None or each.gate.holds(each.value) for each in report.figures)


def _grown(process: psutil.Process, before: int) -> float:
    return (process.memory_info().rss - before) / (1 << 20) if process.is_running() else 0.0


def main() -> int:
    """Measure, print the table, and say by the exit code whether all gates hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the stranger, in all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=200.0, help="messages a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    report = Report("A stranger beside eight clients")
    holds = uvloop.run(measure(report, options))
    report.show()
    report.write(options.json)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
