"""least_latency: the pipeline that answers one request soonest, for few devices or for many."""

import random
from collections.abc import Iterator, Sequence

from planner.cost.roofline import least_row_bytes
from planner.device_classes import classes_of
from planner.search.device_group import DeviceGroup
from planner.search.exact_latency import is_small, least_latency_pipeline
from planner.search.group_pool import GroupPool
from planner.search.local_search import Objective, tilings
from planner.search.operators import Partition
from planner.stop import StopRule
from swarm.plan import Pipeline, Plan


def least_latency(
    pool: GroupPool, given: Sequence[Pipeline], stop: StopRule, seed: int
) -> Pipeline | None:
    """The quickest pipeline over the pool's devices, never slower than the given ones.

    Few devices: exact. Many: exact within neighbourhoods, then chains improve by local moves.
    """
    classes = classes_of(pool.problem, pool.devices)
    params = pool.params.latency
    if is_small(classes, params) and len(pool.devices) <= params.few_devices:
        exact = least_latency_pipeline(pool.problem, list(pool.devices), params=params)
        return _quickest(pool, [*given, *_some(exact)])
    chains = [*given, *_some(_best_chain(pool, stop, seed))]
    chains += [pipeline for plan in local_plans(pool) for pipeline in plan.pipelines]
    best = _quickest(pool, chains)
    for near in neighbourhoods(pool):
        if stop(pool.cost.latency(best) if best else float("inf")):
            break
        limit = pool.cost.latency(best) if best else float("inf")
        best = _quickest(pool, [*_some(best), *_some(_exact(pool, near, limit))])
    return best


def local_plans(pool: GroupPool) -> list[Plan]:
    """The quickest pipeline of groups within machines, exactly, if there are few enough groups."""
    if classes_of(pool.problem, pool.devices).states > pool.params.latency.most_local_states:
        return []
    local = least_latency_pipeline(
        pool.problem,
        list(pool.devices),
        is_local=True,
        tables=pool.tables,
        params=pool.params.latency,
    )
    return [Plan((local,))] if local else []


def next_latency(pool: GroupPool, limit: float) -> Pipeline | None:
    """A pipeline below that many seconds over what is left, found in one neighbourhood."""
    near = next(neighbourhoods(pool), None) if pool.devices else None
    return _exact(pool, near, limit) if near else None


def _some(pipeline: Pipeline | None) -> list[Pipeline]:
    return [pipeline] if pipeline else []


def _exact(pool: GroupPool, devices: Sequence[int], limit: float) -> Pipeline | None:
    return least_latency_pipeline(
        pool.problem, list(devices), limit, tables=pool.tables, params=pool.params.latency
    )


def _quickest(pool: GroupPool, pipelines: Sequence[Pipeline]) -> Pipeline | None:
    fitting = [pipeline for pipeline in pipelines if pool.cost.room(pipeline) >= 1]
    return min(fitting, key=pool.cost.latency, default=None)


def neighbourhoods(pool: GroupPool) -> Iterator[tuple[int, ...]]:
    """Sets of near devices that exact search can take on, around the quickest machines first."""
    problem, seen = pool.problem, set[tuple[tuple[int, int], ...]]()
    machines = sorted({int(problem.machine_of[d]) for d in pool.devices}, key=pool.read_speed)
    for machine in reversed(machines):
        size = pool.params.latency.neighbour_rows * least_row_bytes(problem)
        far = problem.latency[machine] + size / problem.bandwidth[machine]
        order = sorted(machines, key=lambda m: (m != machine, far[m], -pool.read_speed(m)))
        chosen = _small_neighbourhood(pool, order)
        signature = pool.signature(chosen)
        if signature not in seen:
            seen.add(signature)
            yield chosen
        if len(seen) >= pool.params.latency.neighbourhoods:
            return


def _small_neighbourhood(pool: GroupPool, machines: Sequence[int]) -> tuple[int, ...]:
    """Devices of the first machines that together stay small enough for exact search."""
    chosen: list[int] = []
    for machine in machines:
        more = [d for d in pool.devices if pool.problem.machine_of[d] == machine]
        if (
            classes_of(pool.problem, [*chosen, *more]).states
            > pool.params.latency.neighbourhood_states
        ):
            break
        chosen += more
    return tuple(chosen) or tuple(pool.devices[:2])


def _best_chain(pool: GroupPool, stop: StopRule, seed: int) -> Pipeline | None:
    """Local search from the quickest groups that together hold the model."""
    objective, draw = Objective(pool, "latency"), random.Random(seed)
    starts = [Partition((part,), spare) for part, spare in _prefixes(pool)]
    ranked = sorted(starts, key=lambda partition: -objective.total(partition))[
        : pool.params.latency.chains_kept
    ]
    partitions = [
        objective.improve(objective.with_feasible_parts(start), stop, draw) for start in ranked
    ]
    plans = [objective.plan(partition) for partition in partitions]
    return _quickest(pool, [p for plan in plans for p in plan.pipelines])


def _prefixes(pool: GroupPool) -> Iterator[tuple[tuple[DeviceGroup, ...], tuple[DeviceGroup, ...]]]:
    """For every tiling, the quickest groups, and the nearest of some, that just hold the model."""
    for groups in tilings(pool):
        quick = sorted(groups, key=lambda group: (group.request_seconds, group.members))
        orders = [quick, pool.in_order(groups)]
        for order in orders:
            held, count = 0.0, 0
            while held < pool.problem.model.layers + 2 and count < len(order):
                held += float(order[count].layers[0])
                count += 1
            yield tuple(order[:count]), tuple(order[count:])
