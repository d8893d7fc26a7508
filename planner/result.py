"""Result: a plan with its value, its bound, and how both were obtained."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from planner.bounds.latency_bound import latency_bound
from planner.bounds.layer_flow_bound import Bound
from planner.bounds.throughput_bound import throughput_bound
from planner.cost.cost_model import CostModel
from planner.hexgen.genetic_search import HexGen
from planner.instance.cluster_file import Instance
from planner.make_plan import make_plan
from planner.problem import Problem
from planner.search.baselines import BASELINES
from planner.search.group_pool import GroupPool
from planner.search.helix_flow import segment_plan
from planner.simulation.slo import attainment, slo_bound
from planner.stop import StopRule, never
from swarm.errors import BadInput, DoesNotFit
from swarm.plan import Plan

OUR_SEARCH = "swarm"
SEARCH_NAMES = (OUR_SEARCH, "hexgen", *BASELINES)


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


def solve(problem: Problem, search: str, stop: StopRule, seed: int = 0) -> Result:
    """Search for a plan; one that does not fit is a result with reasons, not an error."""
    try:
        plan = _plan(problem, search, stop, seed)
    except DoesNotFit as error:
        return Result(Plan(()), problem.objective, 0.0, Bound(0.0, "memory"), search, (str(error),))
    if not plan.pipelines:
        reason = f"{search} found no plan that fits"
        return Result(plan, problem.objective, 0.0, bound_of(problem), search, (reason,))
    cost = CostModel(problem)
    reasons, value = tuple(cost.reasons(plan)), value_of(cost, plan)
    bound = bound_of(problem, value, stop) if search == OUR_SEARCH else bound_of(problem)
    return Result(plan, problem.objective, value, bound, search, reasons)


def solve_segments(instance: Instance, stop: StopRule) -> Result:
    """Helix's capacity mode: largest static flow over segments with several holders."""
    if not instance.capacity:
        raise BadInput(
            f"{instance.fields.file}: {instance.fields.path}capacity_tokens_s is missing.",
            "Helix capacity mode needs it.",
        )
    plan, flow, bound = segment_plan(instance.problem, instance.capacity, stop)
    reasons = () if plan.pipelines else ("no set of segments covers all layers",)
    return Result(plan, "flow", flow, bound, OUR_SEARCH, reasons)


def _plan(problem: Problem, search: str, stop: StopRule, seed: int) -> Plan:
    if search == OUR_SEARCH:
        return make_plan(problem, stop, seed)
    pool = GroupPool(problem, CostModel(problem))
    objective = "latency" if problem.objective == "latency" else "throughput"
    if search == "hexgen":
        return HexGen(pool, objective, seed).plan(stop)
    if search not in BASELINES:
        known = ", ".join(SEARCH_NAMES)
        raise BadInput(f"--search {search!r} is unknown.", f"Take one of {known}.")
    return BASELINES[search](pool, objective)


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
    """The certificate for the problem's objective; work goes into it if a plan's value is given."""
    return BOUNDS[problem.objective](problem, value, stop)
