"""replan: from the plan in force to the next one after peers left, joined or changed.

Local repair first (`repair.py`): whole pipelines stay, what is left of broken ones is joined and
its gaps are closed. Idle devices form further pipelines. A full search replaces that only if it
pays net of loading, and is left out where the certificate says that it cannot.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planner.best_plan import best_plan, latency_plan, throughput_plan, without
from planner.bounds.latency_bound import latency_bound
from planner.cost.cost_model import CostModel
from planner.cost.feasibility import needed_bytes
from planner.problem import Problem
from planner.replanning.migration import Holdings, load_seconds, moved_bytes, with_least_loading
from planner.replanning.repair import repairs
from planner.search.baselines import plan_value
from planner.search.group_pool import GroupPool, value_of
from planner.search_params import DEFAULT_PARAMS, SearchParams
from planner.stop import StopRule
from swarm.errors import DoesNotFit
from swarm.plan import Pipeline, Plan


@dataclass(frozen=True, slots=True)
class ReplanResult:
    """The next plan and what it costs to get there."""

    plan: Plan
    moved: dict[str, float]  # bytes by device
    value: float  # of the objective, higher is better
    net_value: float  # of it, what is left over the plan's life while pipelines load
    net_flow: float  # tokens per second likewise; for latency, slower pipelines count less
    repaired: bool  # by local repair rather than by a full search

    @property
    def moved_bytes(self) -> float:
        """Bytes that all devices load."""
        return sum(self.moved.values())


def replan(
    problem: Problem,
    current: Plan | Holdings,
    stop: StopRule,
    seed: int = 0,
    *,
    search: bool = True,
    params: SearchParams = DEFAULT_PARAMS,
) -> ReplanResult:
    """The best next plan for the problem as it is now, given the plan in force.

    With `Holdings` devices of no pipeline hold stages, too: using them costs no loading.
    Value counts net of loading over the plan's expected life; fewer layers that hang on one
    short-lived peer win; of repairs about equal in value the one that moves least is taken, and a
    full search must gain a tenth, net of loading. Raises DoesNotFit if nothing fits.
    """
    pool = GroupPool(problem, CostModel(problem), params=params)
    held = current if isinstance(current, Holdings) else Holdings(current)
    plans = repairs(pool, held, _objective(problem))
    made = [_evaluation(pool, held, plan, repaired=True) for plan in plans]
    best = _least_moving(pool, made)
    if best is not None and (not search or stop(-best.value)):
        return best
    if best is not None:
        best = _best_with_idle_devices(pool, held, made, stop, seed)
        if _cannot_gain(pool, best):
            return best
    try:
        found = _evaluation(pool, held, best_plan(problem, stop, seed, params), repaired=False)
    except DoesNotFit:
        if best is None:
            raise
        return best
    return found if best is None or _beats(pool, found, best) else best


def _least_moving(pool: GroupPool, made: Sequence[ReplanResult]) -> ReplanResult | None:
    """Of the plans about equal to the best one, the one that moves least."""
    working = [one for one in made if one.value]
    thinnest = min((thin_layers(pool, one.plan) for one in working), default=0)
    near = [one for one in working if thin_layers(pool, one.plan) == thinnest]
    top = max((one.net_value for one in near), default=0.0)
    near = [one for one in near if one.net_value >= top * (1 - pool.params.replan.about_equal)]
    top = max((one.net_flow for one in near), default=0.0)
    near = [one for one in near if one.net_flow * (1 + pool.params.replan.worth_moving) >= top]
    return min(near, key=lambda one: (one.moved_bytes, -one.net_value), default=None)


def _best_with_idle_devices(
    pool: GroupPool, held: Holdings, made: Sequence[ReplanResult], stop: StopRule, seed: int
) -> ReplanResult:
    """The best plan, its idle devices used, or what comes of the one that moves least."""
    least = min((one for one in made if one.value), key=lambda one: one.moved_bytes)
    grown = _with_idle_devices(pool, held, least, stop, seed)
    best = _least_moving(pool, [*made, grown])
    assert best is not None  # one works: the least moving one
    return best if best is grown else _with_idle_devices(pool, held, best, stop, seed)


def _with_idle_devices(
    pool: GroupPool, held: Holdings, best: ReplanResult, stop: StopRule, seed: int
) -> ReplanResult:
    """The plan with further pipelines of the devices that it leaves idle, if they are worth it."""
    idle = without(pool, best.plan.pipelines)
    if sum(pool.problem.devices[n].memory_bytes for n in idle.devices) < needed_bytes(pool.problem):
        return best
    search = latency_plan if _objective(pool.problem) == "latency" else throughput_plan
    more = search(idle, stop, seed).pipelines
    plan = Plan((*best.plan.pipelines, *more))
    grown = _evaluation(pool, held, plan, repaired=True)
    return grown if more and _beats(pool, grown, best) else best


def _cannot_gain(pool: GroupPool, best: ReplanResult) -> bool:
    """Whether the certificate says that no plan answers sooner by what makes moving worth it."""
    if pool.problem.objective != "latency" or thin_layers(pool, best.plan):
        return False
    least_gain = 1 + pool.params.replan.worth_moving
    return best.net_value * least_gain * latency_bound(pool.problem).value >= 1


def _beats(pool: GroupPool, one: ReplanResult, best: ReplanResult) -> bool:
    params = pool.params.replan
    thin = thin_layers(pool, one.plan) - thin_layers(pool, best.plan)
    if thin or not best.value:
        return thin < 0 or one.value > 0
    more = one.net_flow > best.net_flow * (1 + params.worth_moving)
    gains = one.net_value > best.net_value * (1 + params.worth_moving)
    return gains or (more and one.net_value >= best.net_value * (1 - params.no_loss))


def _evaluation(pool: GroupPool, held: Holdings, plan: Plan, *, repaired: bool) -> ReplanResult:
    problem = pool.problem
    plan = with_least_loading(problem, held, plan)
    moved = moved_bytes(problem, held, plan)
    kept = [_kept_share(pool, moved, pipeline) for pipeline in plan.pipelines]
    values = [value_of(pool.cost, p, _objective(problem)) for p in plan.pipelines]
    net = [value * share for value, share in zip(values, kept, strict=True)]
    return ReplanResult(
        plan,
        moved,
        value=plan_value(pool.cost, plan, _objective(problem)),
        net_value=max(net, default=0.0) if problem.objective == "latency" else sum(net),
        net_flow=math.fsum(f * s for f, s in zip(_useful_flows(pool, plan), kept, strict=True)),
        repaired=repaired,
    )


def _useful_flows(pool: GroupPool, plan: Plan) -> list[float]:
    """Tokens per second of every pipeline; for latency in proportion to how quick it is."""
    flows = [pool.cost.throughput(pipeline) for pipeline in plan.pipelines]
    if pool.problem.objective != "latency":
        return flows
    seconds = [pool.cost.latency(pipeline) for pipeline in plan.pipelines]
    return [f * min(seconds) / s for f, s in zip(flows, seconds, strict=True)]


def _kept_share(pool: GroupPool, moved: dict[str, float], pipeline: Pipeline) -> float:
    """The share of the plan's life that is left when a pipeline's devices have loaded."""
    problem = pool.problem
    here = {shard.device for stage in pipeline.stages for shard in stage.shards}
    lives = [d.lifetime_seconds for d in problem.devices if d.lifetime_seconds < math.inf]
    seconds = load_seconds(problem, {d: size for d, size in moved.items() if d in here})
    return max(0.0, 1 - seconds / min([pool.params.replan.plan_life_seconds, *lives]))


def _objective(problem: Problem) -> str:
    return "latency" if problem.objective == "latency" else "throughput"


def thin_layers(pool: GroupPool, plan: Plan) -> int:
    """Layers that only one pipeline holds, and there on a short-lived peer."""
    problem, least_life = pool.problem, pool.params.replan.short_life_seconds
    lives = {device.id: device.lifetime_seconds for device in problem.devices}
    safe, holders = [0] * problem.model.layers, [0] * problem.model.layers
    for pipeline in plan.pipelines:
        for stage in pipeline.stages:
            short = min(lives[shard.device] for shard in stage.shards) < least_life
            for layer in range(stage.start, stage.end):
                holders[layer] += 1
                safe[layer] += not short
    return sum(h < 2 and not s for h, s in zip(holders, safe, strict=True))
