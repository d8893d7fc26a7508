"""Baselines: placements that other schedulers would make, to compare with and to start from."""

import math
from collections.abc import Iterator, Sequence

from planner.cost.cost_model import CostModel
from planner.search.device_group import DeviceGroup, even_shards, group_with_shards
from planner.search.group_pool import GroupPool, value_of
from planner.search.layer_balance import pipeline_of
from swarm.plan import Pipeline, Plan


def symmetric_plan(pool: GroupPool, objective: str) -> Plan:
    """One tensor-parallel degree and one number of stages everywhere, layers in equal parts.

    The best of all such plans: HexGen's symmetric baseline (ICML 2024, section 5).
    """
    plans = [
        _symmetric(pool, degree, stages)
        for degree in (1, 2, 4, 8)
        for stages in range(1, pool.problem.model.layers + 1)
        if pool.problem.model.layers % stages == 0
    ]
    return max(plans, key=lambda plan: plan_value(pool.cost, plan, objective))


def _symmetric(pool: GroupPool, degree: int, stages: int) -> Plan:
    layers = pool.problem.model.layers // stages
    groups = [a for a in _even_groups(pool, degree) if a.layers[0] >= layers]
    ordered = pool.in_order(groups)
    runs = [ordered[i : i + stages] for i in range(0, len(ordered) - stages + 1, stages)]
    return _valid(pool.cost, [pipeline_of(run, [layers] * stages) for run in runs])


def _even_groups(pool: GroupPool, degree: int) -> Iterator[DeviceGroup]:
    machines: dict[int, list[int]] = {}
    for device in pool.devices:
        machines.setdefault(int(pool.problem.machine_of[device]), []).append(device)
    for members in machines.values():
        for at in range(0, len(members) - degree + 1, degree):
            chosen = tuple(members[at : at + degree])
            shards = even_shards(pool.problem, chosen)
            if shards:
                yield group_with_shards(pool.problem, chosen, shards, -1)


def petals_plan(pool: GroupPool, objective: str) -> Plan:
    """Every server in turn takes as many layers as it holds where the next ones are missing.

    After Petals (NeurIPS 2023): whole layers on single devices, filled by memory, fastest first.
    """
    fast = sorted(_even_groups(pool, 1), key=lambda group: (group.request_seconds, group.members))
    pipelines: list[Pipeline] = []
    chain: list[tuple[DeviceGroup, int]] = []
    for group in fast:
        held = int(group.only_layers[0])
        left = pool.problem.model.layers - sum(count for _, count in chain)
        if held:
            chain.append((group, min(held, left)))
        if chain and sum(count for _, count in chain) == pool.problem.model.layers:
            pipelines.append(pipeline_of([a for a, _ in chain], [count for _, count in chain]))
            chain = []
    return _valid(pool.cost, pipelines)


def parallax_plan(pool: GroupPool, objective: str) -> Plan:
    """k pipelines with the fewest stages, k**2 / stages largest, layers by water-filling.

    After Parallax (arXiv 2509.26182): single devices, layers in proportion to FLOP/s within
    memory.
    """
    roomy = sorted(_even_groups(pool, 1), key=lambda a: (-a.only_layers[0], a.members))
    best: tuple[float, list[list[DeviceGroup]]] = (0.0, [])
    for count in range(1, len(roomy) + 1):
        chains = _fewest_stages(pool, roomy, count)
        if not chains:
            break
        score = count**2 / sum(map(len, chains))
        best = max(best, (score, chains), key=lambda pair: pair[0])
    filled = [_water_filled(pool, pool.in_order(chain)) for chain in best[1]]
    return _valid(pool.cost, [pipeline for pipeline in filled if pipeline])


def _fewest_stages(
    pool: GroupPool, roomy: Sequence[DeviceGroup], count: int
) -> list[list[DeviceGroup]]:
    """Devices, largest first, to the pipeline that lacks most layers; empty if too few."""
    chains: list[list[DeviceGroup]] = [[] for _ in range(count)]
    lacks = [float(pool.problem.model.layers)] * count
    for group in roomy:
        neediest = max(range(count), key=lambda i: lacks[i])
        if lacks[neediest] <= 0:
            break
        chains[neediest].append(group)
        lacks[neediest] -= float(group.only_layers[0])
    return chains if max(lacks) <= 0 else []


def _water_filled(pool: GroupPool, chain: Sequence[DeviceGroup]) -> Pipeline | None:
    layers = pool.problem.model.layers
    flops = [pool.problem.devices[group.members[0]].flops for group in chain]
    most = [int(group.only_layers[0]) for group in chain]
    counts = [0] * len(chain)
    for _ in range(layers):
        open_ = [i for i in range(len(chain)) if counts[i] < most[i]]
        if not open_:
            return None
        counts[min(open_, key=lambda i: ((counts[i] + 1) / flops[i], i))] += 1
    return pipeline_of(chain, counts)


def _valid(cost: CostModel, pipelines: Sequence[Pipeline]) -> Plan:
    return Plan(tuple(pipeline for pipeline in pipelines if cost.room(pipeline) >= 1))


def plan_value(cost: CostModel, plan: Plan, objective: str) -> float:
    """The plan's value, higher is better: tokens per second, or 1 / seconds of a request alone."""
    values = [value_of(cost, pipeline, objective) for pipeline in plan.pipelines]
    return max(values, default=0.0) if objective == "latency" else math.fsum(values)


BASELINES = {"symmetric": symmetric_plan, "petals": petals_plan, "parallax": parallax_plan}
