"""main: the commands `swarm plan --instance ...` and `swarm simulate ...`."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from planner.bounds.layer_flow_bound import Bound
from planner.cli.explain import explain_table, pipeline_lines
from planner.cli.options import ParsedCommand, parse_command, plan_parser, simulate_parser
from planner.cli.simulate_report import (
    attainment_by_deadline,
    attainment_by_rate,
    simulate_by_rate,
    simulate_plan,
)
from planner.cli.svg_charts import curves_chart, layers_chart
from planner.cli.text_chart import layers_picture
from planner.cost.cost_model import CostModel
from planner.hexgen.genetic_search import HexGen
from planner.hexgen.paper_cost import PaperRules
from planner.make_plan import make_plan
from planner.pareto import pareto_front
from planner.problem import Problem
from planner.result import OUR_SEARCH, Result, bound_of, result_without_plan, value_of
from planner.search.fixed_stage_count import plan_with_stages
from planner.search.group_pool import GroupPool
from planner.search.helix_flow import segment_result
from planner.stop import Deadline, StopRule, never
from swarm.commands.command_line import say_error
from swarm.errors import BadInput, DoesNotFit, SwarmError


def main(arguments: Sequence[str]) -> int:
    """Run `plan ...` or `simulate ...`; returns the exit code: 0, or 2 for bad input or no plan."""
    name, *flags = list(arguments) or [""]
    try:
        if name == "simulate":
            return _simulate(parse_command(simulate_parser(), flags))
        return _plan(parse_command(plan_parser(), flags))
    except SwarmError as error:
        say_error(error)
        return error.exit_code


def say(text: str, stream: TextIO | None = None) -> None:
    """Write a line, to standard output unless told otherwise."""
    (stream or sys.stdout).write(text + "\n")


def write(path: str, text: str) -> None:
    """Write a picture; raises BadInput where that is not possible."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}.", "Name a file to write.") from error


def stop_of(seconds: float | None) -> StopRule:
    """A stop rule on the monotonic clock, or none."""
    return never if seconds is None else Deadline(time.monotonic, time.monotonic() + seconds)


def result_of(command: ParsedCommand) -> Result:
    """Search as the flags say."""
    options, problem = command.options, command.instance.problem
    stop = stop_of(options.seconds)
    if options.cost == "flow":
        return segment_result(command.instance, stop)
    if options.cost == "paper":
        return _paper_result(problem, options.search, stop, options.seed)
    if options.stages:
        return _result_with_stages(problem, options.stages, stop, options.seed)
    return make_plan(problem, stop, options.seed, search=options.search)


def _result_with_stages(problem: Problem, stages: int, stop: StopRule, seed: int) -> Result:
    """The best plan found with that many stages in each pipeline; the bound is that of any plan."""
    cost = CostModel(problem)
    objective = "latency" if problem.objective == "latency" else "throughput"
    try:
        plan = plan_with_stages(GroupPool(problem, cost), objective, stages, stop, seed)
    except DoesNotFit as error:
        return result_without_plan(problem, OUR_SEARCH, error)
    value = value_of(cost, plan) if plan.pipelines else 0.0
    count = "one stage" if stages == 1 else f"{stages} stages"
    reason = f"no pipeline of {count} was found that fits the devices' memory."
    reasons = tuple(cost.reasons(plan)) if plan.pipelines else (reason,)
    bound = bound_of(problem, value, stop)
    return Result(plan, problem.objective, value, bound, OUR_SEARCH, reasons)


def _paper_result(problem: Problem, search: str, stop: StopRule, seed: int) -> Result:
    """The plan and its value by the paper's formulas; hexgen searches by them, too."""
    rules, objective = PaperRules(problem), problem.objective
    if search == "hexgen":
        plan = HexGen(GroupPool(problem, CostModel(problem)), objective, seed, rules).plan(stop)
    else:
        plan = make_plan(problem, stop, seed, search=search).plan
    value = rules.plan_value(plan, objective)
    reasons = () if value else ("no plan fits by the paper's memory formula",)
    return Result(plan, objective, value, Bound(0.0, "none in paper mode"), search, reasons)


def _plan(command: ParsedCommand) -> int:
    begun = time.monotonic()
    result = result_of(command)
    seconds = time.monotonic() - begun
    options, problem = command.options, command.instance.problem
    feasible = bool(result.plan.pipelines) and not result.reasons
    if options.svg:
        write(options.svg, layers_chart(result.plan, labels_of(problem)))
    front = pareto_front(problem, stop_of(options.seconds), options.seed) if _wants(options) else []
    if options.pareto_svg:
        curve = [(point.latency_seconds, point.tokens_per_second) for point in front]
        axes = ("seconds of one request", "tokens/s")
        write(
            options.pareto_svg,
            curves_chart(f"Pareto front of {command.instance.id}", axes, {"": curve}),
        )
    if options.json:
        say(json.dumps(_json(result, seconds, feasible), indent=1))
    else:
        _show(command, result, seconds, feasible=feasible)
        for point in front:
            say(f"{point.latency_seconds:10.3f} s  {point.tokens_per_second:10.1f} tokens/s")
    return 0 if feasible else 2


def _wants(options: Any) -> bool:
    return bool(options.pareto or options.pareto_svg)


def _json(result: Result, seconds: float, feasible: bool) -> dict[str, Any]:
    finite = result.gap != float("inf")
    return {
        "plan": result.plan.to_json(),
        "objective": result.objective,
        "value": result.value if feasible else None,
        "bound": result.bound.value if result.bound.value not in (0.0, float("inf")) else None,
        "gap": result.gap if finite and feasible else None,
        "bound_method": result.bound.method,
        "search": result.search,
        "seconds": round(seconds, 3),
        "feasible": feasible,
    } | ({} if feasible else {"reasons": list(result.reasons)})


UNITS = {"latency": "s for one request", "throughput": "tokens/s", "slo": "of requests in time"}


def _show(command: ParsedCommand, result: Result, seconds: float, *, feasible: bool) -> None:
    if not feasible:
        say("INFEASIBLE: " + " ".join(result.reasons))
        return
    unit = UNITS.get(result.objective, "tokens/s of static flow")
    say(f"{command.instance.id}: {result.objective} {result.value:.6g} {unit}")
    if result.bound.value:
        say(f"bound {result.bound.value:.6g} ({result.bound.method}), gap {result.gap:.1%}")
    say(f"search {result.search}, {seconds:.2f} s")
    say(layers_picture(result.plan, labels_of(command.instance.problem)))
    if command.options.explain and result.objective != "flow":
        Console().print(explain_table(command.instance.problem, result.plan))
        for line in pipeline_lines(command.instance.problem, result.plan):
            say(line)


def labels_of(problem: Problem) -> dict[str, str]:
    """What a reader calls the devices: id and kind."""
    return {device.id: f"{device.id} {device.kind}".strip() for device in problem.devices}


def _simulate(command: ParsedCommand) -> int:
    options = command.options
    problem = command.instance.problem
    if options.objective == "slo":
        load = replace(problem.workload, requests_per_second=options.rate)
        problem = replace(problem, workload=load)
    result = result_of(command)
    if result.reasons or not result.plan.pipelines:
        say("INFEASIBLE: " + " ".join(result.reasons), sys.stderr)
        return 2
    simulated = simulate_plan(problem, result.plan, command)
    if options.svg:
        by_rate = simulate_by_rate(problem, result.plan, command)
        write(options.svg, attainment_by_deadline(by_rate))
    if options.rate_svg:
        by_rate = simulate_by_rate(problem, result.plan, command)
        write(options.rate_svg, attainment_by_rate(by_rate, options.deadline_scale))
    if options.json:
        say(json.dumps(simulated.to_json(), indent=1))
    else:
        say(simulated.text())
    return 0
