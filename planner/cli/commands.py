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
from planner.cli.options import Asked, asked, plan_parser, simulate_parser
from planner.cli.simulate_report import (
    attainment_by_deadline,
    attainment_by_rate,
    play,
    played_by_rate,
)
from planner.cli.svg_charts import curves_chart, layers_chart
from planner.cli.text_chart import layers_picture
from planner.cost.cost_model import CostModel
from planner.hexgen.genetic_search import HexGen
from planner.hexgen.paper_cost import PaperRules
from planner.pareto import pareto_front
from planner.problem import Problem
from planner.result import OUR_SEARCH, Outcome, bound_of, solve, solve_segments, value_of
from planner.search.fixed_stage_count import staged_plan
from planner.search.group_pool import Pool
from planner.stop import Deadline, StopRule, never
from swarm.commands.command_line import say_error
from swarm.errors import BadInput, DoesNotFit, SwarmError
from swarm.plan import Plan


def main(arguments: Sequence[str]) -> int:
    """Run `plan ...` or `simulate ...`; returns the exit code: 0, or 2 for bad input or no plan."""
    command, *flags = list(arguments) or [""]
    try:
        if command == "simulate":
            return _simulate(asked(simulate_parser(), flags))
        return _plan(asked(plan_parser(), flags))
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


def outcome_of(ask: Asked) -> Outcome:
    """Search as the flags say."""
    options, problem = ask.options, ask.instance.problem
    stop = stop_of(options.seconds)
    if options.cost == "flow":
        return solve_segments(ask.instance, stop)
    if options.cost == "paper":
        return _paper_outcome(problem, options.search, stop, options.seed)
    if options.stages:
        return _staged_outcome(problem, options.stages, stop, options.seed)
    return solve(problem, options.search, stop, options.seed)


def _staged_outcome(problem: Problem, stages: int, stop: StopRule, seed: int) -> Outcome:
    """The best plan found with that many stages in each pipeline; the bound is that of any plan."""
    cost = CostModel(problem)
    objective = "latency" if problem.objective == "latency" else "throughput"
    try:
        plan = staged_plan(Pool(problem, cost), objective, stages, stop, seed)
    except DoesNotFit as error:
        nothing = Bound(0.0, "memory")
        return Outcome(Plan(()), problem.objective, 0.0, nothing, OUR_SEARCH, (str(error),))
    value = value_of(cost, plan) if plan.pipelines else 0.0
    count = "one stage" if stages == 1 else f"{stages} stages"
    reason = f"no pipeline of {count} was found that fits the devices' memory."
    reasons = tuple(cost.reasons(plan)) if plan.pipelines else (reason,)
    bound = bound_of(problem, value, stop)
    return Outcome(plan, problem.objective, value, bound, OUR_SEARCH, reasons)


def _paper_outcome(problem: Problem, search: str, stop: StopRule, seed: int) -> Outcome:
    """The plan and its value by the paper's formulas; hexgen searches by them, too."""
    rules, objective = PaperRules(problem), problem.objective
    if search == "hexgen":
        plan = HexGen(Pool(problem, CostModel(problem)), objective, seed, rules).plan(stop)
    else:
        plan = solve(problem, search, stop, seed).plan
    value = rules.plan_value(plan, objective)
    reasons = () if value else ("no plan fits by the paper's memory formula",)
    return Outcome(plan, objective, value, Bound(0.0, "none in paper mode"), search, reasons)


def _plan(ask: Asked) -> int:
    begun = time.monotonic()
    outcome = outcome_of(ask)
    seconds = time.monotonic() - begun
    options, problem = ask.options, ask.instance.problem
    feasible = bool(outcome.plan.pipelines) and not outcome.reasons
    if options.svg:
        write(options.svg, layers_chart(outcome.plan, labels_of(problem)))
    front = pareto_front(problem, stop_of(options.seconds), options.seed) if _wants(options) else []
    if options.pareto_svg:
        curve = [(point.latency_seconds, point.tokens_per_second) for point in front]
        axes = ("seconds of one request", "tokens/s")
        write(
            options.pareto_svg,
            curves_chart(f"Pareto front of {ask.instance.id}", axes, {"": curve}),
        )
    if options.json:
        say(json.dumps(_json(outcome, seconds, feasible), indent=1))
    else:
        _show(ask, outcome, seconds, feasible=feasible)
        for point in front:
            say(f"{point.latency_seconds:10.3f} s  {point.tokens_per_second:10.1f} tokens/s")
    return 0 if feasible else 2


def _wants(options: Any) -> bool:
    return bool(options.pareto or options.pareto_svg)


def _json(outcome: Outcome, seconds: float, feasible: bool) -> dict[str, Any]:
    finite = outcome.gap != float("inf")
    return {
        "plan": outcome.plan.to_json(),
        "objective": outcome.objective,
        "value": outcome.value if feasible else None,
        "bound": outcome.bound.value if outcome.bound.value not in (0.0, float("inf")) else None,
        "gap": outcome.gap if finite and feasible else None,
        "bound_method": outcome.bound.method,
        "search": outcome.search,
        "seconds": round(seconds, 3),
        "feasible": feasible,
    } | ({} if feasible else {"reasons": list(outcome.reasons)})


UNITS = {"latency": "s for one request", "throughput": "tokens/s", "slo": "of requests in time"}


def _show(ask: Asked, outcome: Outcome, seconds: float, *, feasible: bool) -> None:
    if not feasible:
        say("INFEASIBLE: " + " ".join(outcome.reasons))
        return
    unit = UNITS.get(outcome.objective, "tokens/s of static flow")
    say(f"{ask.instance.id}: {outcome.objective} {outcome.value:.6g} {unit}")
    if outcome.bound.value:
        say(f"bound {outcome.bound.value:.6g} ({outcome.bound.method}), gap {outcome.gap:.1%}")
    say(f"search {outcome.search}, {seconds:.2f} s")
    say(layers_picture(outcome.plan, labels_of(ask.instance.problem)))
    if ask.options.explain and outcome.objective != "flow":
        Console().print(explain_table(ask.instance.problem, outcome.plan))
        for line in pipeline_lines(ask.instance.problem, outcome.plan):
            say(line)


def labels_of(problem: Problem) -> dict[str, str]:
    """What a reader calls the devices: id and kind."""
    return {device.id: f"{device.id} {device.kind}".strip() for device in problem.devices}


def _simulate(ask: Asked) -> int:
    options = ask.options
    problem = ask.instance.problem
    if options.objective == "slo":
        load = replace(problem.workload, requests_per_second=options.rate)
        problem = replace(problem, workload=load)
    outcome = outcome_of(ask)
    if outcome.reasons or not outcome.plan.pipelines:
        say("INFEASIBLE: " + " ".join(outcome.reasons), sys.stderr)
        return 2
    result = play(problem, outcome.plan, ask)
    if options.svg:
        by_rate = played_by_rate(problem, outcome.plan, ask)
        write(options.svg, attainment_by_deadline(by_rate))
    if options.rate_svg:
        by_rate = played_by_rate(problem, outcome.plan, ask)
        write(options.rate_svg, attainment_by_rate(by_rate, options.deadline_scale))
    if options.json:
        say(json.dumps(result.to_json(), indent=1))
    else:
        say(result.text())
    return 0
