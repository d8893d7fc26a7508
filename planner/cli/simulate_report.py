"""Simulation report: a simulation as `swarm simulate` asks for it, and its report."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner.cli.options import ParsedCommand, deadline_of
from planner.cli.svg_charts import curves_chart
from planner.cost.cost_model import CostModel
from planner.instance.fields import Fields
from planner.problem import Problem
from planner.simulation.simulator import (
    Event,
    Report,
    Request,
    Simulation,
    poisson_trace,
    request_seconds,
)
from swarm.errors import BadInput
from swarm.plan import Plan

SCALES = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 50.0, 90.0)
SCALES_SHOWN = (1.5, 3.0, 10.0)  # beside the one asked for
RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # times the one asked for


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What came out: the report, shares in time by SLO scale, and for the deadline asked for.

    The SLO scale is a deadline as a multiple of the request's seconds alone on the best pipeline.
    """

    report: Report
    attainment: float
    curve: tuple[tuple[float, float], ...]
    rate: float
    scale: float
    deadline_seconds: float = math.inf  # for every request alike; none unless asked for

    @property
    def in_time(self) -> float:
        """The share of requests within the deadline."""
        return self.report.attainment([self.deadline_seconds] * len(self.report.served))

    def share_at(self, scale: float) -> float:
        """The share in time for a deadline scale of the curve, or for the one asked for."""
        return self.attainment if scale == self.scale else dict(self.curve)[scale]

    def to_json(self) -> dict[str, Any]:
        """Figures in seconds, tokens/s and shares; latencies that never end are null."""
        return {
            "requests": len(self.report.served),
            "rate": self.rate,
            "p50_seconds": _finite(self.report.percentile(0.5)),
            "p90_seconds": _finite(self.report.percentile(0.9)),
            "p99_seconds": _finite(self.report.percentile(0.99)),
            "tokens_per_second": self.report.tokens_per_second,
            "slo_attainment": self.attainment,
            "attainment_by_scale": [list(point) for point in self.curve],
        } | self._deadline_json()

    def _deadline_json(self) -> dict[str, float]:
        if self.deadline_seconds == math.inf:
            return {}
        return {"deadline_seconds": self.deadline_seconds, "in_time": self.in_time}

    def text(self) -> str:
        """The same in lines."""
        report = self.report
        return "\n".join(
            [
                f"{len(report.served)} requests at {self.rate:g}/s",
                *(f"p{100 * q:.0f} {report.percentile(q):.3f} s" for q in (0.5, 0.9, 0.99)),
                f"{report.tokens_per_second:.1f} tokens/s",
                *self._deadline_lines(),
                f"{self.attainment:.1%} at SLO scale {self.scale:g}"
                " (a deadline of so many times the request alone)",
            ]
        )

    def _deadline_lines(self) -> list[str]:
        if self.deadline_seconds == math.inf:
            return []
        return [f"{self.in_time:.1%} within the deadline of {self.deadline_seconds:g} s"]


def _finite(value: float) -> float | None:
    return value if value != float("inf") else None


def simulate_plan(problem: Problem, plan: Plan, command: ParsedCommand) -> SimulationResult:
    """Poisson arrivals of the instance's lengths through the plan, with its events."""
    options = command.options
    cost = CostModel(problem)
    inputs, outputs = _lengths(command.instance.fields, problem)
    trace = poisson_trace(options.rate, options.requests, inputs, outputs, options.seed)
    events = _events(command, problem)
    simulation = Simulation(cost, plan, batching=options.batching == "continuous")
    report = simulation.run(trace, events)
    alone = _alone_seconds(cost, plan, trace)
    curve = tuple((s, report.attainment([s * a for a in alone])) for s in SCALES)
    share = report.attainment([options.deadline_scale * a for a in alone])
    scale, deadline = options.deadline_scale, deadline_of(options)
    return SimulationResult(report, share, curve, options.rate, scale, deadline)


def simulate_by_rate(
    problem: Problem, plan: Plan, command: ParsedCommand
) -> list[SimulationResult]:
    """The same at rates around the one asked for."""
    rates = [round(command.options.rate * factor, 6) for factor in RATES]
    options_by_rate = [
        argparse.Namespace(**{**vars(command.options), "rate": rate}) for rate in rates
    ]
    return [
        simulate_plan(problem, plan, replace(command, options=options))
        for options in options_by_rate
    ]


def attainment_by_deadline(simulated: Sequence[SimulationResult]) -> str:
    """A curve for each rate over deadlines; SVG text."""
    curves = {f"{one.rate:g} requests/s": one.curve for one in simulated}
    axes = (
        "SLO scale: deadline / seconds of the request alone on the best pipeline",
        "requests in time",
    )
    return curves_chart("SLO attainment against deadline", axes, curves, shares=True)


def attainment_by_rate(simulated: Sequence[SimulationResult], scale: float) -> str:
    """A curve for the deadline asked for, and for two more, over rates; SVG text."""
    curves = {}
    for wanted in sorted({scale, *SCALES_SHOWN}):
        shares = [(one.rate, one.share_at(wanted)) for one in simulated]
        curves[f"SLO scale {wanted:g}"] = shares
    axes = ("requests/s", "requests in time")
    return curves_chart("SLO attainment against rate", axes, curves, shares=True)


def _lengths(entry: Fields, problem: Problem) -> tuple[list[float], list[float]]:
    load = entry.section_or_empty("workload")
    if load.has("input_tokens"):
        return load.numbers("input_tokens"), load.numbers("output_tokens")
    return [problem.workload.input_tokens], [problem.workload.output_tokens]


def _alone_seconds(cost: CostModel, plan: Plan, trace: list[Request]) -> list[float]:
    best = min(plan.pipelines, key=cost.latency)
    known: dict[tuple[float, float], float] = {}
    for request in trace:
        key = (request.input_tokens, request.output_tokens)
        if key not in known:
            known[key] = request_seconds(cost.problem, best, request)
    return [known[r.input_tokens, r.output_tokens] for r in trace]


def _events(command: ParsedCommand, problem: Problem) -> list[Event]:
    """Leaves and joins of the file given, or of the instance itself."""
    if command.options.events:
        try:
            values = json.loads(Path(command.options.events).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"{command.options.events}: {error}.", "Name a JSON file.") from error
        entry = Fields({"events": values}, "", command.options.events)
    elif command.instance.fields.has("events"):
        entry = command.instance.fields
    else:
        return []
    return [
        Event(
            event.number("t_s", above=False),
            leave=_devices(event, "leave", problem),
            join=_devices(event, "join", problem),
        )
        for event in entry.sections("events")
    ]


def _devices(event: Fields, name: str, problem: Problem) -> tuple[str, ...]:
    """The last so many devices of each machine named."""
    if not event.has(name):
        return ()
    named: list[str] = []
    for part in event.sections(name):
        machine = part.text("machine")
        ids = [device.id for device in problem.devices if device.machine == machine]
        if not ids:
            raise part.refuse("machine", f"names the unknown machine {machine!r}")
        named += ids[-part.count("gpus") :] if part.has("gpus") else ids
    return tuple(named)
