"""make_plan: the door of the planner - a problem, a stop rule and a seed in, a result out."""

from planner.best_plan import best_plan_over
from planner.cost.cost_model import CostModel
from planner.cost.feasibility import require_room
from planner.hexgen.genetic_search import HexGen
from planner.problem import Problem
from planner.result import OUR_SEARCH, Result, bound_of, result_without_plan, value_of
from planner.search.baselines import BASELINES
from planner.search.group_pool import GroupPool
from planner.search_params import DEFAULT_PARAMS, SearchParams
from planner.stop import StopRule
from swarm.errors import BadInput, DoesNotFit
from swarm.plan import Plan

SEARCH_NAMES = (OUR_SEARCH, "hexgen", *BASELINES)


def make_plan(
    problem: Problem,
    stop: StopRule,
    seed: int = 0,
    *,
    search: str = OUR_SEARCH,
    params: SearchParams = DEFAULT_PARAMS,
) -> Result:
    """The best plan found for the problem's objective, its value and its bound.

    One that does not fit is a result with reasons, not an error. `search` names ours or a baseline.
    """
    try:
        if search == OUR_SEARCH:
            require_room(problem)
        pool = GroupPool(problem, CostModel(problem), params=params)
        plan = _plan(pool, search, stop, seed)
    except DoesNotFit as error:
        return result_without_plan(problem, search, error)
    if not plan.pipelines:
        reason = f"{search} found no plan that fits"
        return Result(plan, problem.objective, 0.0, bound_of(problem), search, (reason,))
    reasons, value = tuple(pool.cost.reasons(plan)), value_of(pool.cost, plan)
    bound = bound_of(problem, value, stop) if search == OUR_SEARCH else bound_of(problem)
    return Result(plan, problem.objective, value, bound, search, reasons)


def _plan(pool: GroupPool, search: str, stop: StopRule, seed: int) -> Plan:
    if search == OUR_SEARCH:
        return best_plan_over(pool, stop, seed)
    objective = "latency" if pool.problem.objective == "latency" else "throughput"
    if search == "hexgen":
        return HexGen(pool, objective, seed).plan(stop)
    if search not in BASELINES:
        known = ", ".join(SEARCH_NAMES)
        raise BadInput(f"--search {search!r} is unknown.", f"Take one of {known}.")
    return BASELINES[search](pool, objective)
