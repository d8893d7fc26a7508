"""explain: a plan stage by stage - who, which layers and shares, where time goes, what binds."""

from dataclasses import dataclass

import numpy as np

from planner.cost import CostModel
from planner.problem import Problem
from planner.stage_form import StageForm
from swarm.plan import Pipeline, Plan, Stage


@dataclass(frozen=True, slots=True)
class ExplainRow:
    """One stage of a plan; seconds are those of one decode step of one sequence."""

    pipeline: int
    start: int
    end: int
    members: tuple[str, ...]  # "device kind kv/mlp"
    compute_seconds: float
    allreduce_seconds: float
    hop_seconds: float  # to the next stage, or back to the first
    memory_share: float  # of the fullest member, weights and ends without KV
    binds: str


def explain(problem: Problem, plan: Plan) -> list[ExplainRow]:
    """Rows for every stage in order of pipelines."""
    cost = CostModel(problem)
    return [
        _row(cost, number, pipeline, place)
        for number, pipeline in enumerate(plan.pipelines)
        for place in range(len(pipeline.stages))
    ]


def _row(cost: CostModel, number: int, pipeline: Pipeline, place: int) -> ExplainRow:
    stage = pipeline.stages[place]
    form, one = cost.form(stage), np.ones(1)
    row = one * cost.model.hidden * 2
    talk = 2 * stage.layers * float(form.allreduce(row)[0])
    whole = float(form.seconds(one, one * cost.workload.mean_context, one)[0])
    onward = pipeline.stages[(place + 1) % len(pipeline.stages)]
    size = row if place + 1 < len(pipeline.stages) else 4 * one
    hop = 0.0 if onward is stage else float(cost.hop(stage, onward, size)[0])
    return ExplainRow(
        number,
        stage.start,
        stage.end,
        tuple(_member(cost.problem, stage, i) for i in range(len(stage.shards))),
        whole - talk,
        talk,
        hop,
        _fullest(cost.problem, stage, form),
        _what_binds(form, whole - talk, talk, hop),
    )


def _member(problem: Problem, stage: Stage, place: int) -> str:
    shard = stage.shards[place]
    device = problem.devices[problem.index_of[shard.device]]
    share = "" if len(stage.shards) == 1 else f" kv {shard.kv}, mlp {shard.mlp}"
    return f"{shard.device} ({device.kind or 'device'}){share}"


def _fullest(problem: Problem, stage: Stage, form: StageForm) -> float:
    memory = np.array(
        [problem.devices[problem.index_of[shard.device]].memory_bytes for shard in stage.shards]
    )
    return float((1 - form.free_bytes / memory).max())


def _what_binds(form: StageForm, compute: float, talk: float, hop: float) -> str:
    parts = {"all-reduce": talk, "hop": hop}
    slowest = max(parts, key=lambda name: parts[name])
    if parts[slowest] > compute:
        return slowest
    read = (form.weight_bytes / form.bandwidth).max()
    return "memory bandwidth" if read >= (2 * form.parameters / form.flops).max() else "arithmetic"
