"""Faults and what they cost: `python -m benchmarks.chaos [--seconds 60] [--json FILE]`.

Nodes that hold a model each serve streams while a seeded schedule kills, stalls or sends away one
node, worker or p2pd after the other, and starts it again. Greedy answers are held against
transformers, sampled ones against those of the swarm before the first fault. As root `--laboratory`
gives each node a host of its own (`tests/network`), which `--kinds partition` cuts off.
`--scenario NAME` plays one misfortune (`benchmarks/chaos/scenarios.py`) in place of the schedule.
"""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

import uvloop

from benchmarks.chaos.cluster import HOST, Cluster, Seat, open_cluster, sessions_held
from benchmarks.chaos.faults import FAULTS, NEEDS_HOSTS, Schedule
from benchmarks.chaos.ground import open_ground
from benchmarks.chaos.scenarios import SCENARIOS, play
from benchmarks.chaos.streams import Streams, expected_answers
from benchmarks.chaos.telling import Pauses, tell_remains, tell_streams
from benchmarks.report import Gate, Report
from swarm.errors import SwarmError
from swarm.records import Advert

PAUSE_GATES: dict[str, Pauses] = {
    "kill": (1.0, 4.0),
    "leave": (None, 0.3),
    "pause": (None, 0.3),
    "stall": (None, 8.0),
    "partition": (None, 8.0),
}
LOG_FORMAT = "%(relativeCreated)8.0f %(name)s %(message)s"


async def run(arguments: argparse.Namespace, report: Report) -> None:
    """The whole run."""
    names = [HOST, *(f"node{number}" for number in range(1, arguments.nodes))]
    seats = {name: Seat() for name in names}
    with open_ground(on_hosts=arguments.laboratory) as ground:
        async with open_cluster(seats, log_line, ground) as (cluster, client):
            schedule = Schedule(cluster, arguments.seed, arguments.kinds)
            streams = Streams(client, await expected_answers(client), schedule.faults)
            over = asyncio.Event()
            asyncio.get_running_loop().call_later(arguments.seconds, over.set)
            asking = (streams.run(number, over) for number in range(arguments.clients))
            before = len(cluster.terms())
            await asyncio.gather(schedule.run(arguments.every, over), *asking)
            idle = await not_ready(cluster)
            plans = len(cluster.terms()) - before
            await asyncio.sleep(Advert.TTL_SECONDS / 3)  # adverts say how many sessions there are
            held = await sessions_held(cluster)
    changes = 2 * schedule.counts.total()  # each fault takes a part away, which comes back
    report.add("plans", "losses and returns", changes, "")
    report.add("plans", "changes of the plan", plans, "", Gate(changes))
    for kind, count in sorted(schedule.counts.items()):
        report.add(kind, "times", count, "")
    tell_streams(report, streams.tally, PAUSE_GATES)
    report.add("left", "nodes that do not serve", idle, "", Gate(0))
    report.add("left", "sessions", held, "", Gate(0))
    tell_remains(report, cluster.remains)


async def not_ready(cluster: Cluster) -> int:
    """How many nodes do not serve again after a while."""
    try:
        await cluster.until_ready()
    except SwarmError as error:
        logging.warning("%s", error)
    return len(cluster.there) - len(cluster.ready())


def log_line(name: str, line: str) -> None:
    """Note what a node says."""
    logging.getLogger(name).info("%s", line)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between faults")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(FAULTS), help="default: all that can be")
    parser.add_argument("--laboratory", action="store_true", help="a host for each node; as root")
    parser.add_argument("--scenario", choices=list(SCENARIOS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--log", type=Path, help="what nodes and sessions say, with the time")
    arguments = parser.parse_args()
    arguments.laboratory |= bool({*(arguments.kinds or ())} & NEEDS_HOSTS)
    left_out = set() if arguments.laboratory else NEEDS_HOSTS
    arguments.kinds = arguments.kinds or [kind for kind in FAULTS if kind not in left_out]
    return arguments


def main() -> None:
    """Read the command line, run, and print the table; ends with 1 if what must hold does not."""
    arguments = read_arguments()
    if arguments.log:
        logging.basicConfig(filename=arguments.log, level=logging.INFO, format=LOG_FORMAT)
        logging.getLogger("client.session").setLevel(logging.DEBUG)
    if arguments.scenario:
        report = Report(f"{arguments.scenario}: {SCENARIOS[arguments.scenario].what}")
        uvloop.run(play(SCENARIOS[arguments.scenario], report, log_line))
    else:
        report = Report("faults and what they cost", seconds=f"{arguments.seconds:g}")
        uvloop.run(run(arguments, report))
    report.show()
    report.write(arguments.json)
    sys.exit(any(f.gate and f.unit != "s" and not f.gate.holds(f.value) for f in report.figures))


if __name__ == "__main__":
    main()
