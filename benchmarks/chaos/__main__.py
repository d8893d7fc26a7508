"""Faults and what they cost: `python -m benchmarks.chaos [--seconds 60] [--json FILE]`.

Nodes that hold a model each serve streams while a seeded schedule kills, stalls or sends away one
node, worker or p2pd after the other, and starts it again. Greedy answers are held against
transformers, sampled ones against those of the swarm before the first fault.
"""

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import uvloop

from benchmarks.chaos.cluster import Cluster, open_cluster, sessions_held
from benchmarks.chaos.faults import FAULTS, Schedule
from benchmarks.chaos.streams import ALL, NEW, PROMPT, PROMPTS, Asked, Streams, Tally, answer
from benchmarks.models import model_folder, references
from benchmarks.report import Gate, Report
from client.async_client import Client
from swarm.errors import SwarmError
from swarm.model_spec import BUILT_IN
from swarm.records import Advert

PAUSE_GATES = {  # median and 95th percentile, in seconds
    "kill": (1.0, 4.0),
    "leave": (None, 0.3),
    "pause": (None, 0.3),
    "stall": (None, 8.0),
}
FINISHED_GATE = 0.95
LOG_FORMAT = "%(relativeCreated)8.0f %(name)s %(message)s"


async def expected_answers(client: Client) -> dict[Asked, list[int]]:
    """What each question should be answered with."""
    folder = model_folder(BUILT_IN, Path())
    greedy = await asyncio.to_thread(references, folder, PROMPTS, PROMPT, NEW)
    sampled = [asked for asked in ALL if asked.is_sampled]
    answers = await asyncio.gather(*(answer(client, asked, lambda: None) for asked in sampled))
    found = {asked: greedy[asked.prompt] for asked in ALL if not asked.is_sampled}
    return found | {a: list(g.token_ids) for a, g in zip(sampled, answers, strict=True)}


async def run(arguments: argparse.Namespace, report: Report) -> None:
    """The whole run."""
    async with open_cluster(arguments.nodes, _log_line) as (cluster, client):
        schedule = Schedule(cluster, arguments.seed, arguments.kinds)
        streams = Streams(client, await expected_answers(client), schedule.faults)
        until = perf_counter() + arguments.seconds
        asking = (streams.run(number, until) for number in range(arguments.clients))
        before = len(cluster.terms())
        await asyncio.gather(schedule.run(arguments.every, until), *asking)
        idle = await not_ready(cluster)
        plans = len(cluster.terms()) - before
        await asyncio.sleep(Advert.TTL_SECONDS / 3)  # adverts say how many sessions there are
        held, left = await sessions_held(cluster), cluster.left_over()
    changes = 2 * schedule.counts.total()  # each fault takes a part away, which comes back
    report.add("plans", "losses and returns", changes, "")
    report.add("plans", "changes of the plan", plans, "", Gate(changes))
    for kind, count in sorted(schedule.counts.items()):
        report.add(kind, "times", count, "")
    tell(report, streams.tally)
    report.add("left", "nodes that do not serve", idle, "", Gate(0))
    report.add("left", "sessions", held, "", Gate(0))
    report.add("left", "processes of ended nodes", len(left), "", Gate(0))


async def not_ready(cluster: Cluster) -> int:
    """How many nodes do not serve again after a while."""
    try:
        await cluster.until_ready()
    except SwarmError as error:
        logging.warning("%s", error)
    return len(cluster.there) - len(cluster.ready())


def _log_line(name: str, line: str) -> None:
    logging.getLogger(name).info("%s", line)


def tell(report: Report, tally: Tally) -> None:
    """Note what became of the streams, and their pauses by kind of fault."""
    failed = tally.failed.total()
    share = tally.finished / max(tally.finished + failed, 1)
    report.add("streams", "finished", tally.finished, "")
    report.add("streams", "share finished", share, "", Gate(FINISHED_GATE, at_most=False))
    report.add("streams", "wrong", tally.wrong, "", Gate(0))
    report.add("streams", "broken after their first token", tally.broken, "", Gate(0))
    for cause, count in tally.failed.items():
        report.add("streams", f"refused or broken: {cause}", count, "")
    for kind in sorted({pause.fault for pause in tally.pauses}):
        felt = sorted(p.seconds for p in tally.pauses if p.fault == kind and p.is_affected)
        report.add(kind, "streams that went elsewhere", len(felt), "")
        if felt:
            middle, high = PAUSE_GATES.get(kind, (None, None))
            report.add(kind, "pause, median", median(felt), "s", Gate(middle) if middle else None)
            late = felt[min(len(felt) - 1, int(0.95 * len(felt)))]
            report.add(kind, "pause, p95", late, "s", Gate(high) if high else None)
            report.add(kind, "pause, worst", felt[-1], "s")


def main() -> None:
    """Read the command line, run, and print the table; ends with 1 if what must hold does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between faults")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--log", type=Path, help="what nodes and sessions say, with the time")
    arguments = parser.parse_args()
    if arguments.log:
        logging.basicConfig(filename=arguments.log, level=logging.INFO, format=LOG_FORMAT)
        logging.getLogger("client.session").setLevel(logging.DEBUG)
    report = Report("faults and what they cost", seconds=f"{arguments.seconds:g}")
    uvloop.run(run(arguments, report))
    report.show()
    report.write(arguments.json)
    sys.exit(any(f.gate and f.unit != "s" and not f.gate.holds(f.value) for f in report.figures))


if __name__ == "__main__":
    main()
