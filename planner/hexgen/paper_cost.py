"""HexGen's own cost model: the formulas of the paper, for the reproduction.

Jiang et al., ICML 2024, section 3 (PLANNER.md, section 1): no grouped-query attention, no
embedding or head, compute as the sum (not the larger) of reading and arithmetic, one request at a
time, nominal speeds.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from planner.cost.criterion import Criterion
from planner.problem import Problem
from planner.search.device_group import BATCHES, SEQUENCES, DeviceGroup, even_shards
from swarm.plan import Pipeline, Plan, Stage


@dataclass(frozen=True, eq=False, slots=True)
class PaperRules:
    """The paper's seconds and sizes."""

    problem: Problem
    returns_token: bool = False
    messages: float = 4.0  # of a layer: two all-reduces of two phases each (assumed)
    batch: float = 1.0  # requests served as one

    @property
    def criterion(self) -> Criterion:
        """Hops count once for the prompt and once for every output token."""
        return Criterion(1.0, self.problem.workload.output_tokens)

    @property
    def row_bytes(self) -> float:
        """Activations of one token of every request served together."""
        return self.batch * self.problem.model.hidden * self.problem.model.bytes_per_weight

    def layer_seconds(self, members: tuple[int, ...]) -> float:
        """Compute and tensor-parallel communication of one layer for one request."""
        model, load, count = self.problem.model, self.problem.workload, len(members)
        devices = [self.problem.devices[m] for m in members]
        weights = 12 * model.hidden**2
        reading = weights * model.bytes_per_weight * load.output_tokens / count
        flop = 2 * weights * load.context * self.batch / count
        compute = max(reading / d.bytes_per_second + flop / d.flops for d in devices)
        return compute + self.messages * self._message_seconds(members)

    def _message_seconds(self, members: tuple[int, ...]) -> float:
        load = self.problem.workload
        row = self.row_bytes / len(members)

        def slowest(size: float) -> float:
            sums = [
                sum(a + size / b for a, b in (self.problem.link(d, e) for e in members if e != d))
                for d in members
            ]
            return max(sums)

        return slowest(load.input_tokens * row) + load.output_tokens * slowest(row)

    def most_layers(self, members: tuple[int, ...]) -> float:
        """Layers whose weights, KV and activations fit every member."""
        model, load = self.problem.model, self.problem.workload
        row = load.context * self.row_bytes
        weights = 12 * model.hidden**2 * model.bytes_per_weight / len(members)
        memory = min(self.problem.devices[m].memory_bytes for m in members)
        return float(max(0.0, (memory - 4 * row) // (weights + 2 * row)))

    def group(self, members: tuple[int, ...]) -> DeviceGroup | None:
        """The group as the inner search needs it; None if it is too large to divide."""
        shards = even_shards(self.problem, members)
        if not shards:
            return None
        seconds = self.layer_seconds(members)
        most = np.full(len(SEQUENCES), self.most_layers(members))
        every = seconds * np.ones(len(BATCHES))
        return DeviceGroup(
            members, shards, -1, every, 0 * every, seconds, 0.0, most, most, most, most
        )

    def latency(self, pipeline: Pipeline) -> float:
        """Seconds of one request."""
        stages = sum(
            stage.layers * self.layer_seconds(self._members(stage)) for stage in pipeline.stages
        )
        return stages + sum(self._hop(a, b) for a, b in itertools.pairwise(pipeline.stages))

    def _hop(self, a: Stage, b: Stage) -> float:
        load, row = self.problem.workload, self.row_bytes
        links = [self.problem.link(d, e) for d in self._members(a) for e in self._members(b)]
        prompt = min(alpha + load.input_tokens * row / beta for alpha, beta in links)
        return prompt + load.output_tokens * min(alpha + row / beta for alpha, beta in links)

    def _members(self, stage: Stage) -> tuple[int, ...]:
        return tuple(self.problem.index_of[shard.device] for shard in stage.shards)

    def fits(self, pipeline: Pipeline) -> bool:
        """Whether every stage fits its members' memory."""
        return all(s.layers <= self.most_layers(self._members(s)) for s in pipeline.stages)

    def value(self, pipeline: Pipeline, objective: str) -> float:
        """Requests per second (times output tokens unless latency); 0 if it does not fit."""
        if not self.fits(pipeline):
            return 0.0
        tokens = 1.0 if objective == "latency" else self.problem.workload.output_tokens
        return tokens / self.latency(pipeline)

    def plan_value(self, plan: Plan, objective: str) -> float:
        """Seconds of the best pipeline, or tokens per second of all, one request at a time."""
        values = [self.value(pipeline, objective) for pipeline in plan.pipelines]
        if objective == "latency":
            return 1 / max(values) if max(values, default=0.0) else 0.0
        return sum(values)
