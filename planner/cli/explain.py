"""explain: a plan stage by stage - who, which layers and shares, where time goes, what binds."""

from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table

from planner.cost.cost_model import CostModel
from planner.cost.roofline import TOKEN_BYTES, Pass
from planner.cost.stage_cost import StageForm
from planner.problem import Problem
from swarm.plan import Pipeline, Plan, Shard, Stage


@dataclass(frozen=True, slots=True)
class ExplainRow:
    """One stage of a plan; seconds are those of one decode step of one sequence."""

    pipeline: int
    start: int
    end: int
    members: tuple[str, ...]  # "device kind"
    shares: tuple[tuple[int, int], ...]  # of every member: KV heads, MLP blocks
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
    allreduce = stage.layers * float(form.allreduce_seconds(one * form.row_bytes)[0])
    whole = float(form.decode_seconds(cost.workload, one)[0])
    onward = pipeline.stages[(place + 1) % len(pipeline.stages)]
    size = form.row_bytes if place + 1 < len(pipeline.stages) else TOKEN_BYTES
    hop = 0.0 if onward is stage else float(cost.hop(stage, onward, size * one)[0])
    return ExplainRow(
        number,
        stage.start,
        stage.end,
        tuple(_member(cost.problem, shard) for shard in stage.shards),
        tuple((shard.kv, shard.mlp) for shard in stage.shards),
        whole - allreduce,
        allreduce,
        hop,
        _fullest(cost.problem, stage, form),
        _what_binds(form, whole - allreduce, allreduce, hop),
    )


def _member(problem: Problem, shard: Shard) -> str:
    device = problem.devices[problem.index_of[shard.device]]
    return f"{shard.device} {device.kind}".strip()


def _fullest(problem: Problem, stage: Stage, form: StageForm) -> float:
    memory = np.array(
        [[problem.devices[problem.index_of[shard.device]].memory_bytes] for shard in stage.shards]
    )
    return float((1 - form.free_bytes / memory).max())


def _what_binds(form: StageForm, compute: float, allreduce: float, hop: float) -> str:
    parts = {"all-reduce": allreduce, "hop": hop}
    slowest = max(parts, key=lambda name: parts[name])
    if parts[slowest] > compute:
        return slowest
    reading, arithmetic = form.part.work(Pass(1.0)).parts(form.speeds)
    return "memory bandwidth" if reading.max() >= arithmetic.max() else "arithmetic"


def explain_table(problem: Problem, plan: Plan) -> Table:
    """The rows of `explain` for a terminal: one decode step of one sequence."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    table.title = "Milliseconds of one token alone; memory is that of weights, embedding and head."
    table.add_column("", justify="right")
    table.add_column("layers", no_wrap=True)
    table.add_column("who", no_wrap=True)
    for name in ("KV\nheads", "MLP\nblocks", "compute\nms", "reduce\nms", "hop\nms", "mem-\nory"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("binds")
    for row in explain(problem, plan):
        table.add_row(
            str(row.pipeline + 1),
            f"{row.start}-{row.end - 1}",
            "\n".join(member.partition(" ")[0] for member in row.members),
            "\n".join(str(kv) for kv, _ in row.shares),
            "\n".join(str(mlp) for _, mlp in row.shares),
            f"{1e3 * row.compute_seconds:.2f}",
            f"{1e3 * row.allreduce_seconds:.2f}",
            f"{1e3 * row.hop_seconds:.2f}",
            f"{row.memory_share:.0%}",
            row.binds,
        )
    return table


def _ends(problem: Problem, pipeline: Pipeline) -> str:
    """Who holds embedding and head: beside them a shard is smaller than that of an equal device."""
    first, last = pipeline.stages[0], pipeline.stages[-1]
    everywhere = problem.model.embedding_everywhere
    embeds = _holders(first, everywhere or first.shares_ends)
    return f"{embeds} the embedding, {_holders(last, last.shares_ends)} the head"


def _holders(stage: Stage, all_of_them: bool) -> str:
    devices = [shard.device for shard in stage.shards]
    if all_of_them and len(devices) > 1:
        return f"{', '.join(devices)} hold"
    return f"{devices[0]} holds"


def pipeline_lines(problem: Problem, plan: Plan) -> list[str]:
    """What every pipeline does as a whole: who holds its ends, and its figures."""
    cost = CostModel(problem)
    lines = []
    for number, one in enumerate(plan.pipelines, 1):
        lines.append(
            f"pipeline {number}: a request alone {cost.latency(one):.3f} s, first token after"
            f" {cost.prefill(one):.3f} s, then {1e3 * cost.decode_step(one):.1f} ms a token;"
            f" {cost.throughput(one):.1f} tokens/s with {cost.room(one):,.0f} sequences at once"
        )
        lines.append(f"pipeline {number}: {_ends(problem, one)}")
    return lines
