"""Options: the flags of `swarm plan --instance` and `swarm simulate`, and the problem they mean."""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from planner.instance.cluster_file import Instance, instance_ids, read_file, read_instance
from planner.instance.fields import Fields
from planner.make_plan import SEARCH_NAMES
from planner.problem import OBJECTIVES, Problem
from planner.result import OUR_SEARCH
from swarm.commands.command_line import Parser
from swarm.errors import BadInput

SLO_SECONDS = 10.0  # for a whole request, unless --deadline says otherwise
MODES = ("reference", "paper", "flow")
ADDED = re.compile(r"(?:(\d+)x)?([^@]+)@(.+)")


def plan_parser() -> Parser:
    """Flags of `swarm plan --instance`."""
    parser = Parser(
        prog="swarm plan",
        description="With --instance: plan a cluster that a file describes"
        " (docs/cluster-format.md), without a network. Without: show the plan that a swarm follows;"
        " that knows only --join INVITE, --state FOLDER and --json.",
    )
    _common(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--explain", action="store_true", help="say where the time goes")
    parser.add_argument("--pareto", action="store_true", help="latency against throughput")
    parser.add_argument("--svg", metavar="FILE", help="write the picture of layers by device")
    parser.add_argument("--pareto-svg", metavar="FILE", help="write the Pareto front")
    return parser


def simulate_parser() -> Parser:
    """Flags of `swarm simulate`."""
    parser = Parser(prog="swarm simulate", description="Play requests through a plan.")
    _common(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--requests", type=_count, default=500, metavar="N", help="how many")
    parser.add_argument(
        "--deadline-scale",
        type=_positive,
        default=5.0,
        metavar="SCALE",
        help="SLO scale: the deadline as a multiple of a request's seconds alone (5)",
    )
    parser.add_argument(
        *("--batching",),
        choices=("continuous", "none"),
        default="continuous",
        help="whether a stage computes tokens of several requests in one step",
    )
    parser.add_argument("--events", metavar="FILE", help="JSON list; default: the instance's own")
    parser.add_argument("--svg", metavar="FILE", help="write attainment against deadline")
    parser.add_argument("--rate-svg", metavar="FILE", help="write attainment against rate")
    return parser


def _common(parser: Parser) -> None:
    parser.add_argument(
        "--instance", required=True, metavar="FILE", help="the cluster: machines, model, network"
    )
    parser.add_argument("--id", help="which instance of the file; the only one by default")
    parser.add_argument(
        *("--objective",),
        choices=OBJECTIVES,
        default="latency",
        help="seconds of one request (the default), tokens/s, or the share of requests in time",
    )
    parser.add_argument(
        "--search", choices=SEARCH_NAMES, default="swarm", help="ours (swarm), or a rival"
    )
    parser.add_argument(
        *("--cost",),
        choices=MODES,
        default="reference",
        help="reference: all we know; paper: HexGen's formulas; flow: Helix's",
    )
    parser.add_argument(
        "--seconds", type=_at_least_zero, metavar="S", help="stop the search after so many"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the search")
    parser.add_argument("--stages", type=_count, metavar="N", help="so many in every pipeline")
    parser.add_argument(
        "--rate", type=_positive, default=1.0, metavar="R", help="requests per second (1)"
    )
    parser.add_argument(
        *("--deadline",),
        type=_positive,
        metavar="S",
        help="seconds for a whole request; 10 for the objective slo",
    )
    parser.add_argument(
        *("--without",),
        action="append",
        default=[],
        metavar="MACHINE",
        help="leave out a machine, or one of its devices: desk/0; may be repeated",
    )
    parser.add_argument(
        *("--add",),
        action="append",
        default=[],
        metavar="GPU@REGION",
        help="add a machine, such as 2x4090@eu; may be repeated",
    )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} must be above zero")
    return value


def _at_least_zero(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must be at least zero")
    return value


def _count(text: str) -> int:
    value = _number(text)
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(value)


@dataclass(frozen=True, slots=True)
class ParsedCommand:
    """The instance that a command is about, after --without and --add."""

    options: argparse.Namespace
    instance: Instance


def parse_command(parser: Parser, arguments: Sequence[str]) -> ParsedCommand:
    """Parse the flags and read the instance; raises BadInput on anything wrong."""
    options = parser.parse_args(arguments)
    file = read_file(options.instance)
    name = options.id or _only_id(file)
    changed = changed_file(file, name, options.without, options.add)
    instance = read_instance(changed, name, options.objective)
    problem = instance.problem
    _check_stages(options, problem, file.file)
    load = replace(
        problem.workload,
        requests_per_second=options.rate,
        deadline_seconds=deadline_of(options) if options.objective == "slo" else math.inf,
    )
    return ParsedCommand(options, replace(instance, problem=replace(problem, workload=load)))


def deadline_of(options: argparse.Namespace) -> float:
    """Seconds that a request may take: as asked for, else those of the objective slo, else any."""
    if options.deadline is not None:
        return float(options.deadline)
    return SLO_SECONDS if options.objective == "slo" else math.inf


def _check_stages(options: argparse.Namespace, problem: Problem, file: str) -> None:
    """Refuse more stages than layers or devices, and searches that choose their own stages."""
    count, next_step = options.stages, "Ask for fewer stages."
    if not count:
        return
    if count > problem.model.layers:
        name, layers = problem.model.name, problem.model.layers
        raise BadInput(f"--stages {count}: {name} in {file} has only {layers} layers.", next_step)
    if count > len(problem.devices):
        devices = f"instance {options.id or ''}".strip() + f" in {file} has only"
        raise BadInput(f"--stages {count}: {devices} {len(problem.devices)} devices.", next_step)
    if options.search != OUR_SEARCH or options.cost != "reference":
        ways = f"--search {options.search} --cost {options.cost}"
        raise BadInput(f"--stages {count}: {ways} chooses stages for itself.", "Leave one out.")


def _only_id(file: Fields) -> str:
    ids = instance_ids(file)
    if len(ids) != 1:
        raise BadInput(f"{file.file}: instances holds {len(ids)} ids.", "Choose one with --id.")
    return ids[0]


def changed_file(file: Fields, name: str, without: Sequence[str], add: Sequence[str]) -> Fields:
    """The file's data with machines (or single devices) left out and others added."""
    sections = file.sections("instances")
    entries = [dict(entry.values) for entry in sections]
    for entry, section in zip(entries, sections, strict=True):
        if entry.get("id") == name:
            machines = [dict(m.values) for m in section.sections("machines")]
            for peer in without:
                machines = _without(machines, peer, file.file)
            machines += [_added(text, number) for number, text in enumerate(add)]
            entry["machines"] = machines
    return Fields({**file.values, "instances": entries}, "", file.file)


def _without(machines: list[dict[str, Any]], peer: str, file: str) -> list[dict[str, Any]]:
    """Without a machine, or without one device of it ("machine/index")."""
    name, _, index = peer.partition("/")
    machine = next((m for m in machines if m.get("id") == name), None)
    if machine is None:
        raise BadInput(f"--without {peer}: {file} has no machine {name!r}.", "Name one it has.")
    if not index:
        return [m for m in machines if m is not machine]
    count, absent = machine.get("count"), machine.get("absent", [])
    if isinstance(count, int) and not (index.isdecimal() and int(index) < count):
        why = f"machine {name!r} of {file} has devices 0 to {count - 1}"
        raise BadInput(f"--without {peer}: {why}.", "Name one it has.")
    fewer = machine | {"absent": [*absent, int(index)]}
    return [fewer if m is machine else m for m in machines]


def _added(text: str, number: int) -> dict[str, Any]:
    match = ADDED.fullmatch(text)
    if not match:
        raise BadInput(f"--add {text!r} is not GPU@REGION.", 'Write it like "2x4090@eu".')
    count, gpu, region = match.groups()
    if count and int(count) < 1:
        raise BadInput(f"--add {text!r} adds no device.", 'Write it like "2x4090@eu".')
    return {
        "id": f"added-{number}",
        "gpu": gpu,
        "count": int(count or 1),
        "region": region,
    }
