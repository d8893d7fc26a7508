"""Criterion: what a stage's time means for an objective, as weighted passes over its layers."""

from dataclasses import dataclass

import numpy as np

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
    load = problem.workload
    batch, prompt = np.array([criterion.batch]), np.array([float(load.input_tokens)])
    square = 2.0 * load.input_tokens**2 * problem.model.hidden
    decode = form.seconds(batch, batch * load.mean_context, batch)
    prefill = form.seconds(prompt, prompt, np.ones(1), square)
    return float((criterion.decode_weight * decode + criterion.prefill_weight * prefill)[0])


def unit_rates(
    problem: Problem, criterion: Criterion, device: PlanDevice
) -> tuple[Numbers, Numbers]:
    """Seconds of one layer per KV head and per MLP block on a device.

    Four figures each, for prefill and decode bound by memory or by arithmetic; the device takes
    the largest of the four sums.
    """
    model, load = problem.model, problem.workload
    read = 1 / (device.memory_efficiency * device.bytes_per_second)
    compute = 1 / (device.compute_efficiency * device.flops)
    prompt, batch = load.input_tokens, criterion.batch
    attention = model.attention_parameters / model.kv_heads
    block = model.mlp_parameters / model.mlp_blocks
    cache = model.kv_bytes / model.kv_heads
    square = 2.0 * prompt**2 * model.hidden / model.kv_heads
    weight = attention * model.bytes_per_weight
    head = (
        np.array([(weight + prompt * cache) * read, (2 * prompt * attention + square) * compute]),
        np.array(
            [(weight + batch * load.mean_context * cache) * read, 2 * batch * attention * compute]
        ),
    )
    column = (
        np.array([block * model.bytes_per_weight * read, 2 * prompt * block * compute]),
        np.array([block * model.bytes_per_weight * read, 2 * batch * block * compute]),
    )
    weights = (criterion.prefill_weight, criterion.decode_weight)
    return _all_sums(head, weights), _all_sums(column, weights)


def _all_sums(phases: tuple[Numbers, Numbers], weights: tuple[float, float]) -> Numbers:
    sums: Numbers = np.add.outer(weights[0] * phases[0], weights[1] * phases[1]).ravel()
    return sums


def head_seconds(problem: Problem, criterion: Criterion, device: PlanDevice) -> float:
    """Seconds that the head costs the leader of the last stage."""
    model = problem.model
    read = model.end_bytes / (device.memory_efficiency * device.bytes_per_second)
    row = 2.0 * model.embedding_parameters / (device.compute_efficiency * device.flops)
    decode = max(read, row * criterion.batch)
    return criterion.prefill_weight * max(read, row) + criterion.decode_weight * decode


def allreduce_seconds(
    problem: Problem, criterion: Criterion, latency: float, bandwidth: float, members: int
) -> float:
    """Seconds of the all-reduces of one layer for a group whose worst link is given."""
    if members == 1:
        return 0.0
    row = 2.0 * problem.model.hidden
    sizes = (problem.workload.input_tokens * row, criterion.batch * row)
    weights = (criterion.prefill_weight, criterion.decode_weight)
    ring = [2 * (members - 1) * (latency + size / (members * bandwidth)) for size in sizes]
    at_once = [latency + (members - 1) * size / bandwidth for size in sizes]
    fastest = [min(a, b) for a, b in zip(ring, at_once, strict=True)]
    return 2 * sum(w * t for w, t in zip(weights, fastest, strict=True))
