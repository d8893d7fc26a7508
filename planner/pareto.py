"""pareto_front: plans between the least latency and the most tokens per second."""

from dataclasses import dataclass, replace

from planner.best_plan import latency_plan, throughput_plan
from planner.cost.cost_model import CostModel
from planner.problem import Problem
from planner.search.baselines import BASELINES
from planner.search.group_pool import GroupPool
from planner.search.local_search import Objective, starts_of
from planner.search_params import DEFAULT_PARAMS, SearchParams
from planner.stop import StopRule
from swarm.plan import Plan


@dataclass(frozen=True, slots=True)
class Point:
    """A plan that no other one found beats in both figures."""

    latency_seconds: float
    tokens_per_second: float
    plan: Plan


def pareto_front(
    problem: Problem, stop: StopRule, seed: int, params: SearchParams = DEFAULT_PARAMS
) -> list[Point]:
    """The points found, quickest first."""
    problem = replace(problem, objective="latency")
    pool = GroupPool(problem, CostModel(problem), params=params)
    objective = Objective(pool, "throughput")
    plans = [latency_plan(pool, stop, seed), throughput_plan(pool, stop, seed)]
    plans += [baseline(pool, name) for baseline in BASELINES.values() for name in ("latency", "")]
    plans += [objective.plan(objective.with_feasible_parts(start)) for start in starts_of(pool)]
    points = [_point(pool.cost, plan) for plan in plans if plan.pipelines]
    points.sort(key=lambda point: (point.latency_seconds, -point.tokens_per_second))
    front: list[Point] = []
    for point in points:
        if not front or point.tokens_per_second > front[-1].tokens_per_second * (1 + 1e-9):
            front.append(point)
    return front


def _point(cost: CostModel, plan: Plan) -> Point:
    return Point(cost.best_latency(plan), cost.total_throughput(plan), plan)
