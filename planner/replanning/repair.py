"""repairs: plans that keep every whole pipeline and make new ones of what is left of the others.

Stages that lost a member go on with the others, or with a spare in the place of the lost one.
What is left of broken pipelines is joined where halves line up, then gaps are closed by neighbours
and spares (`layer_assignment.py`), from the plan that loads least to the one that serves fastest.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from planner.cost.criterion import latency_criterion
from planner.replanning.layer_assignment import SurvivingStage, pipelines_over
from planner.replanning.migration import Holdings, lacking_bytes
from planner.search.group_pool import GroupPool, value_of
from planner.search.tensor_split import StageMembers, best_split
from swarm.plan import Pipeline, Plan, Shard, Stage


@dataclass(frozen=True, slots=True)
class BrokenPlan:
    """The plan in force as it is now: whole pipelines, stages of broken ones, idle devices."""

    whole: tuple[Pipeline, ...]
    stages: tuple[tuple[Stage, ...], ...]  # of every broken pipeline, lost members included
    spares: tuple[int, ...]


def broken_plan(pool: GroupPool, held: Holdings) -> BrokenPlan:
    """Sort the plan's pipelines into whole ones and broken ones; to these belong the reserves."""
    current = held.plan
    here = set(pool.problem.index_of)
    whole, broken = list[Pipeline](), list[tuple[Stage, ...]]()
    for pipeline in current.pipelines:
        ids = {shard.device for stage in pipeline.stages for shard in stage.shards}
        if ids <= here and pool.cost.room(pipeline) >= 1:
            whole.append(pipeline)
        else:
            broken.append(pipeline.stages)
    broken += [(stage,) for stage in held.reserves]
    used = {shard.device for _, shard in held.shards()}
    spares = [n for n in pool.devices if pool.problem.devices[n].id not in used]
    return BrokenPlan(tuple(whole), tuple(broken), tuple(spares))


def repairs(pool: GroupPool, held: Holdings, objective: str) -> Iterator[Plan]:
    """Plans that keep every whole pipeline; what they load is left to the caller to judge."""
    broken = broken_plan(pool, held)
    if broken.whole:
        yield Plan(broken.whole)
    for is_replaced in (True, False) if broken.spares else (False,):
        spares = list(broken.spares)
        left = [
            [
                r
                for stage in stages
                for r in _surviving_stages(pool, stage, spares if is_replaced else [])
            ]
            for stages in broken.stages
        ]
        extra = [
            SurvivingStage(alone) for spare in spares if (alone := pool.group((spare,))) is not None
        ]
        for groups in _groupings(pool, left):
            yield from _plans_over(pool, broken.whole, groups, objective)
            if extra and groups:
                yield from _plans_over(pool, broken.whole, _with_spares(groups, extra), objective)


# ---- what is left of a stage


def _surviving_stages(pool: GroupPool, stage: Stage, spares: list[int]) -> list[SurvivingStage]:
    """The stage with what members it has left, `spares` in the place of lost ones; or nothing."""
    known = pool.problem.index_of
    shards = _with_spares_in_place(pool, stage, spares)
    if not shards:
        members = tuple(known[s.device] for s in stage.shards if s.device in known)
        if members:
            criterion = latency_criterion(pool.problem)
            shards = best_split(pool.problem, StageMembers(members), criterion, stage.layers)
            shards = shards or best_split(pool.problem, StageMembers(members), criterion, 1)
    if not shards:
        return []
    group = pool.adopt(tuple(known[s.device] for s in shards), shards)
    old = {shard.device: stage for shard in stage.shards}
    lacks = lacking_bytes(pool.problem, old, replace(stage, shards=shards))
    whole = stage.layers * pool.problem.model.layer_bytes
    return [
        SurvivingStage(group, stage.start, stage.end, max(0.0, 1 - sum(lacks.values()) / whole))
    ]


def _with_spares_in_place(pool: GroupPool, stage: Stage, spares: list[int]) -> tuple[Shard, ...]:
    """The shards with a spare of the same machine for every lost one; nothing if there is none."""
    problem = pool.problem
    here = [s.device for s in stage.shards if s.device in problem.index_of]
    machines = {problem.devices[problem.index_of[device]].machine for device in here}
    near = [n for n in spares if problem.devices[n].machine in machines]
    if not here or len(stage.shards) - len(here) > len(near):
        return ()
    shards = []
    for shard in stage.shards:
        if shard.device not in problem.index_of:
            spares.remove(near[0])
            shard = replace(shard, device=problem.devices[near.pop(0)].id)
        shards.append(shard)
    return tuple(shards)


# ---- which survivors serve together


def _groupings(
    pool: GroupPool, left: Sequence[Sequence[SurvivingStage]]
) -> list[list[list[SurvivingStage]]]:
    """As they served before, and joined so that the first pipelines lack the fewest layers."""
    apart = [list(group) for group in left if group]
    joined = _chains([r for group in apart for r in group], len(left), pool.problem.model.layers)
    return [apart] if len(apart) < 2 else [joined, apart]


def _chains(survivors: list[SurvivingStage], count: int, layers: int) -> list[list[SurvivingStage]]:
    """Chains of survivors, in turn the one that lacks the fewest layers; the rest in the last."""
    rest, chains = list(survivors), list[list[SurvivingStage]]()
    while rest and len(chains) < count:
        chain = _fullest(rest, layers)
        chains.append(chain)
        rest = [survivor for survivor in rest if survivor not in chain]
    return [*chains[:-1], [*chains[-1], *rest]] if chains else []


def _fullest(survivors: Sequence[SurvivingStage], layers: int) -> list[SurvivingStage]:
    """The chain over rising layers that leaves the fewest of them to be loaded."""
    ordered = sorted(survivors, key=lambda r: (r.end, r.start, r.group.members))
    best: list[tuple[float, list[SurvivingStage]]] = []  # that ends with each survivor
    for at, survivor in enumerate(ordered):
        own = (1 - survivor.held_share) * (survivor.end - survivor.start)
        options = [(float(survivor.start) + own, [survivor])]
        for cost, chain in best[:at]:
            gap = max(0, survivor.start - chain[-1].end)
            if chain[-1].end < survivor.end:
                options.append((cost + gap + own, [*chain, survivor]))
        best.append(min(options, key=lambda option: option[0]))
    closed = [(cost + layers - chain[-1].end, chain) for cost, chain in best]
    return min(closed, key=lambda option: option[0])[1]


def _with_spares(
    groups: list[list[SurvivingStage]], extra: Sequence[SurvivingStage]
) -> list[list[SurvivingStage]]:
    """Spares dealt to the groups in turn, each at the widest gap."""
    filled = []
    for number, group in enumerate(groups):
        edges = [0, *itertools.chain.from_iterable((r.start, r.end) for r in group), 10**9]
        gaps = [edges[2 * i + 1] - edges[2 * i] for i in range(len(group))]
        at = max(range(len(group)), key=lambda i: gaps[i])
        filled.append([*group[:at], *extra[number :: len(groups)], *group[at:]])
    return filled


# ---- pipelines of them


def _plans_over(
    pool: GroupPool,
    whole: Sequence[Pipeline],
    groups: Sequence[Sequence[SurvivingStage]],
    objective: str,
) -> Iterator[Plan]:
    """The whole pipelines and one of each group, at several prices of loading."""
    layers, known = pool.problem.model.layers, set[tuple[Pipeline, ...]]()
    offers = [
        _offers(pool, group, pipelines_over(group, layers, objective), objective)
        for group in groups
    ]
    top = max((value for group in offers for value, _, _ in group), default=0.0)
    for loading in pool.params.replan.loading_prices:
        chosen = [
            max(group, key=lambda o: o[0] - loading * top * o[1])[2] for group in offers if group
        ]
        made = (*whole, *chosen)
        if chosen and made not in known:
            known.add(made)
            yield Plan(made)


def _offers(
    pool: GroupPool, group: Sequence[SurvivingStage], pipelines: Sequence[Pipeline], objective: str
) -> list[tuple[float, float, Pipeline]]:
    """Pipelines that work, each with its value and the share of the model that it loads."""
    held = [Stage(r.start, r.end, r.group.shards) for r in group if r.held_share]
    old = {shard.device: stage for stage in held for shard in stage.shards}
    model, offers = pool.problem.model, []
    for pipeline in pipelines:
        value = value_of(pool.cost, pipeline, objective)
        lacks = [lacking_bytes(pool.problem, old, stage) for stage in pipeline.stages]
        size = sum(sum(lack.values()) for lack in lacks) / (model.layers * model.layer_bytes)
        if value:
            offers.append((value, size, pipeline))
    return offers
