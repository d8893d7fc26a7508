"""CostModel: what a plan is worth - seconds of a request, tokens per second, room for sequences."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost.roofline import TOKEN_BYTES, stage_row_bytes
from planner.cost.stage_cost import StageForm, chain_seconds, form_stage
from planner.problem import Numbers, Problem
from swarm.plan import Pipeline, Plan, Shard, Stage

Shards = tuple[Shard, ...]
BATCH_CAP = 4096  # sequences in one pipeline
FORMS_KEPT = 200_000
GROUPS_PER_STAGE = 4  # batches in flight tried, for each stage


@dataclass(frozen=True, eq=False, slots=True)
class _Ways:
    """The ways from one stage to the next, between any machine of each: arrays [ways]."""

    latency: Numbers
    per_byte: Numbers  # seconds
    per_row: Numbers  # seconds of a token's activations as the first stage sends them


class CostModel:
    """Times and sizes in reference mode: equal to `benchmarks/planner/reference.py` within 1e-6."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.model = problem.model
        self.workload = problem.workload
        self._forms: dict[tuple[int, bool, bool, bool, tuple[Shard, ...]], StageForm] = {}
        self._held: dict[StageForm, float] = {}
        self._prefills: dict[StageForm, float] = {}
        self._places: dict[tuple[Shard, ...], tuple[int, ...]] = {}
        self._hops: dict[tuple[Shards, Shards], _Ways] = {}

    def form(self, stage: Stage) -> StageForm:
        """The stage as arrays, remembered."""
        first, last = stage.start == 0, stage.end == self.model.layers
        shared = stage.shares_ends
        key = (stage.layers, first, last, shared, stage.shards)
        if key not in self._forms:
            if len(self._forms) > FORMS_KEPT:
                self._forget()
            self._forms[key] = form_stage(
                self.problem, stage.shards, stage.layers, first=first, last=last, shared=shared
            )
        return self._forms[key]

    def _forget(self) -> None:
        for memory in (self._forms, self._held, self._prefills):
            memory.clear()

    # ---- sizes

    def room(self, pipeline: Pipeline) -> float:
        """Whole sequences of the workload's context that fit every shard at once."""
        return math.floor(min(self.held(stage) for stage in pipeline.stages))

    def held(self, stage: Stage) -> float:
        """Sequences whose KV fits the stage, not rounded; remembered."""
        form = self.form(stage)
        if form not in self._held:
            self._held[form] = form.sequences(self.workload.context)
        return self._held[form]

    # ---- times of parts

    def hop(self, a: Stage, b: Stage, size: Numbers) -> Numbers:
        """Seconds of `size` bytes from one stage to the next over the best pair of members."""
        ways = self._ways(a, b)
        best: Numbers = (ways.latency[:, None] + np.multiply.outer(ways.per_byte, size)).min(axis=0)
        return best

    def _ways(self, a: Stage, b: Stage) -> "_Ways":
        key = (a.shards, b.shards)
        if key not in self._hops:
            grid = np.ix_(self._machines(a.shards), self._machines(b.shards))
            latency, bandwidth = self.problem.latency[grid], self.problem.bandwidth[grid]
            per_byte = 1 / bandwidth.ravel()
            row = stage_row_bytes(self.problem, [self.problem.index_of[s.device] for s in a.shards])
            self._hops[key] = _Ways(latency.ravel(), per_byte, per_byte * row)
        return self._hops[key]

    def _machines(self, shards: tuple[Shard, ...]) -> tuple[int, ...]:
        if shards not in self._places:
            where, number = self.problem.machine_of, self.problem.index_of
            self._places[shards] = tuple(sorted({int(where[number[s.device]]) for s in shards}))
        return self._places[shards]

    def hops(self, pipeline: Pipeline, tokens: Numbers) -> Numbers:
        """Seconds between stages in one pass of `tokens` rows, the token's way back included."""
        stages = pipeline.stages
        if len(stages) == 1:
            return np.zeros_like(tokens)
        hops = [self._ways(a, b) for a, b in itertools.pairwise(stages)]
        total = self.hop(stages[-1], stages[0], np.full_like(tokens, TOKEN_BYTES))
        single = [(hop.latency[0], hop.per_row[0]) for hop in hops if len(hop.latency) == 1]
        if single:
            latency, per_row = np.sum(single, axis=0)
            total = total + latency + per_row * tokens
        for hop in hops:
            if len(hop.latency) > 1:
                each = hop.latency[:, None] + np.multiply.outer(hop.per_row, tokens)
                total = total + each.min(axis=0)
        return total

    def decode_times(self, pipeline: Pipeline, batch: Numbers) -> Numbers:
        """Seconds of every stage (rows) for one decode pass of each batch size (columns)."""
        forms = [self.form(stage) for stage in pipeline.stages]
        return chain_seconds(forms, self.workload, batch)

    def prefill_times(self, pipeline: Pipeline) -> Numbers:
        """Seconds of every stage for the whole prompt of one request."""
        return np.array([self.prefill_time(self.form(stage)) for stage in pipeline.stages])

    def prefill_time(self, form: StageForm) -> float:
        """Seconds of one stage for the whole prompt of one request; remembered."""
        if form not in self._prefills:
            self._prefills[form] = form.prefill_seconds(self.workload)
        return self._prefills[form]

    # ---- values

    def decode_step(self, pipeline: Pipeline, batch: float = 1.0) -> float:
        """Seconds per token of each of `batch` sequences that go through together."""
        size = np.array([float(batch)])
        return float((self.decode_times(pipeline, size).sum(axis=0) + self.hops(pipeline, size))[0])

    def prefill(self, pipeline: Pipeline) -> float:
        """Seconds to the first token of one request alone."""
        prompt = np.array([float(self.workload.input_tokens)])
        return float(self.prefill_times(pipeline).sum() + self.hops(pipeline, prompt)[0])

    def latency(self, pipeline: Pipeline) -> float:
        """Seconds of one request alone: prefill, then a step for every further token."""
        steps = self.workload.output_tokens - 1
        return self.prefill(pipeline) + steps * self.decode_step(pipeline)

    def throughput(self, pipeline: Pipeline) -> float:
        """Output tokens per second at saturation: sequences fill the KV memory in chasing groups.

        n sequences in g groups: n / max(sum of stages + hops, g x slowest stage), the best g.
        """
        n = min(self.room(pipeline), BATCH_CAP)
        if n < 1:
            return 0.0
        groups = np.arange(1.0, min(n, GROUPS_PER_STAGE * len(pipeline.stages)) + 1)
        batch = n / groups
        prefill = self.prefill_times(pipeline)[:, None] * batch / self.workload.output_tokens
        times = self.decode_times(pipeline, batch) + prefill
        cycle = np.maximum(
            times.sum(axis=0) + self.hops(pipeline, batch), groups * times.max(axis=0)
        )
        return float((n / cycle).max())

    def best_latency(self, plan: Plan) -> float:
        """Seconds of one request on the plan's fastest pipeline; infinite without one."""
        return min((self.latency(p) for p in plan.pipelines), default=math.inf)

    def total_throughput(self, plan: Plan) -> float:
        """Tokens per second of all pipelines together."""
        return sum(self.throughput(pipeline) for pipeline in plan.pipelines)

    # ---- validity

    def reasons(self, plan: Plan) -> list[str]:
        """Every reason why the plan cannot run here, as sentences; empty when it can."""
        unknown = sorted({s.device for _, s in plan.shards()} - set(self.problem.index_of))
        if unknown:
            return [f"no device {device}" for device in unknown]
        found = [reason for stage, _ in _leaders(plan) for reason in self._share_reasons(stage)]
        for number, pipeline in enumerate(plan.pipelines):
            found += [f"pipeline {number}: {reason}" for reason in self._pipeline_reasons(pipeline)]
        return found

    def _share_reasons(self, stage: Stage) -> list[str]:
        held = (sum(s.kv for s in stage.shards), sum(s.mlp for s in stage.shards))
        if held == (self.model.kv_heads, self.model.mlp_blocks):
            return []
        return [
            f"stage [{stage.start},{stage.end}) holds {held[0]} of {self.model.kv_heads} KV heads"
            f" and {held[1]} of {self.model.mlp_blocks} MLP blocks"
        ]

    def _pipeline_reasons(self, pipeline: Pipeline) -> list[str]:
        if pipeline.layers != self.model.layers:
            return [f"covers {pipeline.layers} of {self.model.layers} layers"]
        if self.room(pipeline) < 1:
            return [f"no room for weights and KV of {self.workload.context:g} tokens"]
        return []


def _leaders(plan: Plan) -> Sequence[tuple[Stage, Shard]]:
    return [(s, s.shards[0]) for pipeline in plan.pipelines for s in pipeline.stages]
