"""Best plan: our search for a problem's objective, begun from what other schedulers make of it."""

from collections.abc import Sequence

from planner.cost.cost_model import CostModel
from planner.cost.feasibility import require_room
from planner.hexgen.genetic_search import hexgen_start
from planner.problem import Problem
from planner.search.baselines import BASELINES, plan_value
from planner.search.group_pool import GroupPool
from planner.search.latency_search import least_latency, local_plans, next_latency
from planner.search.local_search import Objective, best_partition
from planner.search.stage_order import with_best_stage_orders
from planner.search_params import DEFAULT_PARAMS, SearchParams
from planner.simulation.slo import attainment
from planner.stop import StopRule
from swarm.plan import Pipeline, Plan


def best_plan(
    problem: Problem, stop: StopRule, seed: int = 0, params: SearchParams = DEFAULT_PARAMS
) -> Plan:
    """The best plan found for the problem's objective; equal arguments give equal plans.

    Devices that serve in no pipeline are spares. Raises DoesNotFit, with the missing bytes, if no
    pipeline can hold the model and one sequence.
    """
    require_room(problem)
    return best_plan_over(GroupPool(problem, CostModel(problem), params=params), stop, seed)


def best_plan_over(pool: GroupPool, stop: StopRule, seed: int) -> Plan:
    """The same over a pool whose devices have room enough, which is used further."""
    plan = SEARCHES[pool.problem.objective](pool, stop, seed)
    if not plan.pipelines:
        require_room(pool.problem, proven_impossible=True)
    return plan


def latency_plan(pool: GroupPool, stop: StopRule, seed: int) -> Plan:
    """The quickest pipeline, then the next quickest from what is left, while any fits."""
    given = _starts(pool, "latency", stop)
    starts = [pipeline for plan in given for pipeline in plan.pipelines]
    pipelines: list[Pipeline] = []
    while (pipeline := least_latency(pool, starts, stop, seed)) is not None:
        pipelines.append(pipeline)
        pool, starts = without(pool, [pipeline]), []
        if len(pool.devices) > pool.params.latency.many_left or stop(
            pool.cost.latency(pipelines[0])
        ):
            return Plan((*pipelines, *_rest(pool, pipelines[0], stop, seed)))
    return Plan(tuple(pipelines))


def _rest(pool: GroupPool, first: Pipeline, stop: StopRule, seed: int) -> tuple[Pipeline, ...]:
    """Further pipelines about as quick as the first while there are any, then for throughput."""
    limit = pool.params.latency.nearly * pool.cost.latency(first)
    near = list[Pipeline]()
    while not stop(limit) and (pipeline := next_latency(pool, limit)) is not None:
        near.append(pipeline)
        pool = without(pool, [pipeline])
    left = throughput_plan(pool, stop, seed, patient=False) if pool.devices else Plan(())
    return (*near, *left.pipelines)


def without(pool: GroupPool, pipelines: Sequence[Pipeline]) -> GroupPool:
    """A pool of the devices that serve in none of the pipelines."""
    stages = [stage for pipeline in pipelines for stage in pipeline.stages]
    return pool.without({shard.device for stage in stages for shard in stage.shards})


def throughput_plan(pool: GroupPool, stop: StopRule, seed: int, *, patient: bool = True) -> Plan:
    """Most tokens per second; never fewer than the plans of the baselines."""
    objective = Objective(pool, "throughput")
    baselines = _starts(pool, "throughput", stop if patient else _at_once)
    partition = best_partition(objective, [], stop if patient else _at_once, seed)[1]
    plans = [objective.plan(partition), *baselines, *local_plans(pool)]
    best = max(plans, key=lambda plan: plan_value(pool.cost, plan, "throughput"))
    return with_best_stage_orders(pool, best, "throughput", stop) if patient else best


def _starts(pool: GroupPool, objective: str, stop: StopRule) -> list[Plan]:
    """What other schedulers make of the pool: no search ends below one of these."""
    baselines = [baseline(pool, objective) for baseline in BASELINES.values()]
    return baselines if stop(0.0) else [*baselines, hexgen_start(pool, objective, stop)]


def _at_once(best_cost: float) -> bool:
    return True


def slo_plan(pool: GroupPool, stop: StopRule, seed: int) -> Plan:
    """Most requests within the deadline: the best of plans between low latency and high flow."""
    plans = [latency_plan(pool, stop, seed), throughput_plan(pool, stop, seed)]
    plans += [plan for kind in ("throughput", "latency") for plan in _starts(pool, kind, stop)]
    return max(plans, key=lambda plan: attainment(pool.cost, plan))


SEARCHES = {"latency": latency_plan, "throughput": throughput_plan, "slo": slo_plan}
