"""Criterion: what a stage's time means for an objective, as weighted passes over its layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost.roofline import (
    LayerPart,
    Pass,
    Speeds,
    decode_pass,
    head_part,
    layer_allreduce_seconds,
    layer_part,
    prefill_pass,
    speeds_of,
    stage_row_bytes,
    worst_link,
)
from planner.cost.stage_cost import StageForm
from planner.problem import Numbers, PlanDevice, Problem


@dataclass(frozen=True, slots=True)
class Criterion:
    """Weights of one prefill and one decode pass of `batch` sequences; `sequences` must fit."""

    prefill_weight: float
    decode_weight: float
    batch: float = 1.0
    sequences: float = 1.0

    def __post_init__(self) -> None:
        if min(self.prefill_weight, self.decode_weight) < 0 or self.batch <= 0:
            raise ValueError("a criterion needs weights of at least 0 and a batch above 0")


def latency_criterion(problem: Problem) -> Criterion:
    """One request alone: a prefill and output - 1 decode steps."""
    return Criterion(1.0, problem.workload.output_tokens - 1.0)


def batch_criterion(problem: Problem, batch: float, sequences: float) -> Criterion:
    """A decode pass of `batch` sequences and their share of prefills, at saturation."""
    return Criterion(batch / problem.workload.output_tokens, 1.0, batch, sequences)


def stage_seconds(problem: Problem, criterion: Criterion, form: StageForm) -> float:
    """The criterion's seconds of one stage, all-reduce and head included."""
    decode = float(form.decode_seconds(problem.workload, np.array([criterion.batch]))[0])
    prefill = form.prefill_seconds(problem.workload)
    return criterion.decode_weight * decode + criterion.prefill_weight * prefill


def unit_rates(
    problem: Problem, criterion: Criterion, device: PlanDevice
) -> tuple[Numbers, Numbers]:
    """Seconds of one layer per KV head and per MLP block on a device.

    Four figures each, for prefill and decode bound by memory or by arithmetic; the device takes
    the largest of the four sums.
    """
    model = problem.model
    units = (
        layer_part(model, 1 / model.kv_heads, 0.0),
        layer_part(model, 0.0, 1 / model.mlp_blocks),
    )
    head, block = (_all_sums(problem, criterion, unit, speeds_of(device)) for unit in units)
    return head, block


def _all_sums(problem: Problem, criterion: Criterion, unit: LayerPart, speeds: Speeds) -> Numbers:
    load = problem.workload
    prefill = np.array(unit.work(prefill_pass(load)).parts(speeds))
    decode = np.array(unit.work(decode_pass(load, criterion.batch)).parts(speeds))
    weights = criterion.prefill_weight, criterion.decode_weight
    sums: Numbers = np.add.outer(weights[0] * prefill, weights[1] * decode).ravel()
    return sums


def head_seconds(problem: Problem, criterion: Criterion, device: PlanDevice) -> float:
    """Seconds that the head costs the leader of the last stage."""
    head, speeds = head_part(problem.model), speeds_of(device)
    first, step = (float(head.work(Pass(n)).seconds(speeds)) for n in (1.0, criterion.batch))
    return criterion.prefill_weight * first + criterion.decode_weight * step


def allreduce_seconds(problem: Problem, criterion: Criterion, members: Sequence[int]) -> float:
    """The criterion's seconds of the all-reduces of one layer on these devices."""
    row, link = stage_row_bytes(problem, members), worst_link(problem, members)
    prompt, step = (
        float(layer_allreduce_seconds(rows * row, len(members), link))
        for rows in (problem.workload.input_tokens, criterion.batch)
    )
    return criterion.prefill_weight * prompt + criterion.decode_weight * step
