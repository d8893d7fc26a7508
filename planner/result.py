"""Result: a plan with its value, its bound, and how both were obtained."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from planner.bounds.latency_bound import latency_bound
from planner.bounds.layer_flow_bound import Bound
from planner.bounds.throughput_bound import throughput_bound
from planner.cost.cost_model import CostModel
from planner.problem import Problem
from planner.simulation.slo import attainment, slo_bound
from planner.stop import StopRule, never
from swarm.errors import DoesNotFit
from swarm.plan import Plan

OUR_SEARCH = "swarm"


@dataclass(frozen=True, slots=True)
class Result:
    """What a search found. `value`: seconds (latency), tokens/s (throughput, flow), share (slo)."""

    plan: Plan
    objective: str
    value: float
    bound: Bound
    search: str
    reasons: tuple[str, ...] = ()

    @property
    def gap(self) -> float:
        """How far the value may be from the best one, at most: 0.1 is 10 %."""
        if not self.value or not self.bound.value:
            return float("inf")
        best, worst = self.bound.value, self.value
        return worst / best - 1 if self.objective == "latency" else best / worst - 1


def result_without_plan(problem: Problem, search: str, error: DoesNotFit) -> Result:
    """The result where no plan fits, with the missing bytes as its reason."""
    nothing = Bound(0.0, "memory")
    return Result(Plan(()), problem.objective, 0.0, nothing, search, (str(error),))


VALUES: dict[str, Callable[[CostModel, Plan], float]] = {
    "latency": CostModel.best_latency,
    "throughput": CostModel.total_throughput,
    "slo": attainment,
}
BOUNDS: dict[str, Callable[[Problem, float, StopRule], Bound]] = {
    "latency": lambda problem, value, stop: latency_bound(problem),
    "throughput": throughput_bound,
    "slo": lambda problem, value, stop: slo_bound(problem),
}


def value_of(cost: CostModel, plan: Plan) -> float:
    """The plan's value for the problem's objective."""
    return VALUES[cost.problem.objective](cost, plan)


def bound_of(problem: Problem, value: float = math.inf, stop: StopRule = never) -> Bound:
    """The bound for the problem's objective; work goes into it if a plan's value is given."""
    return BOUNDS[problem.objective](problem, value, stop)
