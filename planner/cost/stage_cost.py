"""StageForm: one stage as arrays over its shards, from which every time and size follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.cost.roofline import (
    Figures,
    LayerPart,
    Pass,
    Speeds,
    decode_pass,
    head_part,
    layer_allreduce_seconds,
    layer_part,
    prefill_pass,
    speeds_of_all,
    stage_row_bytes,
    worst_link,
)
from planner.problem import Numbers, Problem, Workload
from swarm.plan import Shard


@dataclass(frozen=True, eq=False, slots=True)
class StageForm:
    """Loads and speeds of the shards of one stage, leader first.

    Arrays are columns [shards, 1]. Times are those of the roofline, as in
    `benchmarks/planner/reference.py`.
    """

    layers: int
    part: LayerPart  # of one layer on each shard
    speeds: Speeds  # effective ones
    free_bytes: Numbers  # left beside weights, embedding and head; negative if they do not fit
    head: LayerPart | None  # computed by the leader in every step; only of the last stage
    link: tuple[float, float]  # latency and bytes/s of the worst pair of members
    row_bytes: float  # of one token's activations, on to the next stage and between members

    @property
    def members(self) -> int:
        """How many devices serve the stage together."""
        return len(self.free_bytes)

    def seconds(self, one: Pass, sampled: Numbers) -> Numbers:
        """Seconds of one pass [cases] with so many sampled rows."""
        busy: Numbers = self.layers * self.part.work(one).seconds(self.speeds)
        if self.head is not None:
            busy[0] += self.head_seconds(self.head, sampled)
        allreduce = self.layers * self.allreduce_seconds(one.tokens * self.row_bytes)
        slowest: Numbers = busy.max(axis=0) + allreduce
        return slowest

    def decode_seconds(self, load: Workload, batch: Numbers) -> Numbers:
        """Seconds of a pass of a token of each of `batch` sequences: [cases]."""
        return self.seconds(decode_pass(load, batch), batch)

    def prefill_seconds(self, load: Workload) -> float:
        """Seconds of the whole prompt of one request."""
        return float(self.seconds(prefill_pass(load), np.ones(1))[0])

    def head_seconds(self, head: LayerPart, sampled: Numbers) -> Numbers:
        """Seconds that the head costs the leader for so many sampled rows."""
        seconds: Numbers = head.work(Pass(sampled)).seconds(self.speeds.of_leader)
        return seconds

    def allreduce_seconds(self, size: Figures) -> Any:
        """Seconds of the all-reduces of `size` bytes that one layer takes."""
        return layer_allreduce_seconds(size, self.members, self.link)

    def sequences(self, context: float) -> float:
        """Sequences of `context` tokens whose KV fits (not rounded); 0 if weights do not."""
        if self.free_bytes.min() < 0:
            return 0.0
        kv_bytes = np.asarray(self.part.kv_bytes)
        holds = kv_bytes > 0
        need = self.layers * kv_bytes[holds] * context
        return float((self.free_bytes[holds] / need).min())


def chain_seconds(forms: Sequence[StageForm], load: Workload, batch: Numbers) -> Numbers:
    """Seconds of a decode pass for all stages at once: [stages, cases]; a row sampled per token."""
    begins = np.cumsum([0, *(form.members for form in forms)])
    depth = np.repeat([float(form.layers) for form in forms], np.diff(begins))[:, None]
    part = LayerPart.joined([form.part for form in forms])
    speeds = Speeds.joined([form.speeds for form in forms])
    busy = depth * part.work(decode_pass(load, batch)).seconds(speeds)
    last = forms[-1]
    if last.head is not None:
        busy[begins[-2]] += last.head_seconds(last.head, batch)
    slowest: Numbers = np.maximum.reduceat(busy, begins[:-1], axis=0)
    for row, form in enumerate(forms):
        if form.members > 1:
            slowest[row] += form.layers * form.allreduce_seconds(batch * form.row_bytes)
    return slowest


def end_bytes_of(
    problem: Problem, place: tuple[int, int], *, first: bool, last: bool, shared: bool = False
) -> float:
    """Bytes of embedding and head on a member: `place` is its rank, and of how many."""
    rank, members = place
    if shared and members > 1:
        return problem.model.end_bytes * (first + last) / members
    leads = rank == 0
    embeds = first and (leads or problem.model.embedding_everywhere)
    return problem.model.end_bytes * (embeds + (last and leads))


def form_stage(
    problem: Problem,
    shards: tuple[Shard, ...],
    layers: int,
    *,
    first: bool,
    last: bool,
    shared: bool = False,
) -> StageForm:
    """Lay the stage out as arrays; raises KeyError for a device that the problem lacks.

    Members that share the ends need less memory; the time is still that of a leader alone. Nothing
    fits members that cannot share a stage.
    """
    model = problem.model
    shared = shared or model.shared_ends
    members = [problem.index_of[shard.device] for shard in shards]
    devices = [problem.devices[member] for member in members]
    kv_share = np.array([[shard.kv / model.kv_heads] for shard in shards])
    part = layer_part(
        model, kv_share, np.array([[shard.mlp / model.mlp_blocks] for shard in shards])
    )
    ends = [
        [end_bytes_of(problem, (rank, len(shards)), first=first, last=last, shared=shared)]
        for rank in range(len(shards))
    ]
    memory = np.array([[device.memory_bytes] for device in devices], dtype=float)
    if problem.keeps_apart(members):
        memory[:] = -np.inf
    return StageForm(
        layers=layers,
        part=part,
        speeds=speeds_of_all(devices),
        free_bytes=memory - layers * part.weight_bytes - np.array(ends),
        head=head_part(model) if last else None,
        link=worst_link(problem, members),
        row_bytes=stage_row_bytes(problem, members),
    )
