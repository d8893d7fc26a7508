"""Stage order: exchange stages of a pipeline, and shift layers, while its value rises."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from planner.cost.cost_model import CostModel
from planner.search.group_pool import GroupPool, value_of
from planner.stop import StopRule
from swarm.plan import Pipeline, Plan, Stage

GAIN = 1e-9


def with_best_stage_orders(pool: GroupPool, plan: Plan, objective: str, stop: StopRule) -> Plan:
    """Every pipeline of the plan, with_best_stage_order, but very long ones as they are."""
    most = pool.params.local.most_stages_ordered
    ordered = (
        with_best_stage_order(pool.cost, pipeline, objective, stop)
        if len(pipeline.stages) <= most
        else pipeline
        for pipeline in plan.pipelines
    )
    return Plan(tuple(ordered))


def with_best_stage_order(
    cost: CostModel, pipeline: Pipeline, objective: str, stop: StopRule
) -> Pipeline:
    """The pipeline after every exchange or shift that raises its value, first come first made."""
    best = value_of(cost, pipeline, objective)
    while not stop(-best):
        found = next(_better(cost, pipeline, objective, best), None)
        if found is None:
            break
        best, pipeline = found
    return pipeline


def _better(
    cost: CostModel, pipeline: Pipeline, objective: str, best: float
) -> Iterator[tuple[float, Pipeline]]:
    for stages in _neighbours(pipeline.stages):
        changed = _renumbered(stages)
        value = value_of(cost, changed, objective)
        if value > best * (1 + GAIN):
            yield value, changed


def _neighbours(stages: Sequence[Stage]) -> Iterator[list[Stage]]:
    """Two stages exchanged, a stretch of them turned round, or one layer shifted."""
    for i, j in itertools.combinations(range(len(stages)), 2):
        changed = list(stages)
        changed[i], changed[j] = changed[j], changed[i]
        yield changed
        if j - i > 1:
            yield [*stages[:i], *reversed(stages[i : j + 1]), *stages[j + 1 :]]
    for i, j in itertools.permutations(range(len(stages)), 2):
        if stages[i].layers > 1:
            changed = list(stages)
            changed[i] = replace(stages[i], end=stages[i].end - 1)
            changed[j] = replace(stages[j], end=stages[j].end + 1)
            yield changed


def _renumbered(stages: Sequence[Stage]) -> Pipeline:
    ends = list(itertools.accumulate(stage.layers for stage in stages))
    return Pipeline(
        tuple(
            replace(stage, start=end - stage.layers, end=end)
            for stage, end in zip(stages, ends, strict=True)
        )
    )
