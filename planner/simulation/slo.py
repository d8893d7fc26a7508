"""Service level: the share of requests that a plan answers within their deadline, simulated."""

import math

from planner.bounds.latency_bound import latency_bound
from planner.bounds.layer_flow_bound import Bound
from planner.cost.cost_model import CostModel
from planner.problem import Problem
from planner.simulation.simulator import Simulation, poisson_trace
from swarm.plan import Plan

REQUESTS = 200
TRACE_SEED = 1
DEFAULT_RATE = 1.0  # requests per second where the workload names none


def attainment(cost: CostModel, plan: Plan) -> float:
    """Share of Poisson arrivals served within the workload's deadline, continuous batching."""
    load = cost.workload
    rate = load.requests_per_second or DEFAULT_RATE
    trace = poisson_trace(rate, REQUESTS, [load.input_tokens], [load.output_tokens], TRACE_SEED)
    report = Simulation(cost, plan, batching=True).run(trace)
    return report.attainment([load.deadline_seconds] * len(trace))


def slo_bound(problem: Problem) -> Bound:
    """All requests, unless even one alone must miss the deadline."""
    least = latency_bound(problem)
    if math.isfinite(problem.workload.deadline_seconds):
        possible = least.value <= problem.workload.deadline_seconds
        return Bound(1.0 if possible else 0.0, f"least latency ({least.method})")
    return Bound(1.0, "no deadline")
