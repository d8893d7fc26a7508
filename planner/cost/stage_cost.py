"""StageForm: one stage as arrays over its shards, from which every time and size follows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.problem import Numbers, Problem
from swarm.plan import Shard


@dataclass(frozen=True, eq=False, slots=True)
class StageForm:
    """Loads and speeds of the shards of one stage, leader first.

    Arrays run over shards; speeds are effective ones (efficiency included). Times follow the
    roofline of `benchmarks/planner/reference.py`.
    """

    layers: int
    weight_bytes: Numbers  # of one layer
    parameters: Numbers  # of one layer
    kv_bytes: Numbers  # of one token in one layer
    kv_share: Numbers  # of the KV heads, 0..1
    bandwidth: Numbers  # bytes/s
    flops: Numbers  # FLOP/s
    free_bytes: Numbers  # left beside weights, embedding and head; negative if they do not fit
    head_bytes: float  # read by the leader in every step; 0 unless the last stage
    head_flop: float  # of the leader for each sampled row
    latency: float  # one way, of the worst pair of members, seconds
    link_bandwidth: float  # of the worst pair, bytes/s
    hidden: int

    def seconds(
        self, tokens: Numbers, kv_tokens: Numbers, sampled: Numbers, square_flop: float = 0.0
    ) -> Numbers:
        """Seconds of one pass for arrays of cases: new tokens, cached tokens read, sampled rows.

        `square_flop` is the attention's quadratic work, FLOP of a whole layer.
        """
        read = self.weight_bytes[:, None] + np.multiply.outer(self.kv_bytes, kv_tokens)
        flop = (
            np.multiply.outer(2 * self.parameters, tokens) + (square_flop * self.kv_share)[:, None]
        )
        busy = self.layers * np.maximum(read / self.bandwidth[:, None], flop / self.flops[:, None])
        if self.head_bytes:
            read_head = self.head_bytes / self.bandwidth[0]
            busy[0] += np.maximum(read_head, self.head_flop * sampled / self.flops[0])
        slowest: Numbers = busy.max(axis=0)
        return slowest + 2 * self.layers * self.allreduce(tokens * self.hidden * 2)

    def allreduce(self, size: Numbers) -> Numbers:
        """Seconds of one all-reduce of `size` bytes: the better of ring and all-to-all."""
        n = len(self.parameters)
        if n == 1:
            return np.zeros_like(size)
        ring = 2 * (n - 1) * (self.latency + size / (n * self.link_bandwidth))
        at_once = self.latency + (n - 1) * size / self.link_bandwidth
        fastest: Numbers = np.minimum(ring, at_once)
        return fastest

    def sequences(self, context: float) -> float:
        """Sequences of `context` tokens whose KV fits (not rounded); 0 if weights do not."""
        if self.free_bytes.min() < 0:
            return 0.0
        holds = self.kv_bytes > 0
        need = self.layers * self.kv_bytes[holds] * context
        return float((self.free_bytes[holds] / need).min())


def chain_seconds(forms: Sequence[StageForm], tokens: Numbers, kv_tokens: Numbers) -> Numbers:
    """Seconds of a decode pass for all stages at once: [stages, cases]; a row sampled per token."""
    begins = np.cumsum([0, *(len(form.parameters) for form in forms)])
    layers = np.array([float(form.layers) for form in forms])
    depth = np.repeat(layers, np.diff(begins))

    def joined(name: str) -> Numbers:
        return np.concatenate([getattr(form, name) for form in forms])

    bandwidth, flops = joined("bandwidth"), joined("flops")
    fixed = depth * joined("weight_bytes") / bandwidth
    per_cached = depth * joined("kv_bytes") / bandwidth
    per_token = 2 * depth * joined("parameters") / flops
    read = fixed[:, None] + np.multiply.outer(per_cached, kv_tokens)
    busy = np.maximum(read, np.multiply.outer(per_token, tokens))
    last = forms[-1]
    if last.head_bytes:
        head = np.maximum(
            last.head_bytes / last.bandwidth[0], last.head_flop * tokens / last.flops[0]
        )
        busy[begins[-2]] += head
    slowest: Numbers = np.maximum.reduceat(busy, begins[:-1], axis=0)
    for row, form in enumerate(forms):
        if len(form.parameters) > 1:
            slowest[row] += 2 * form.layers * form.allreduce(tokens * form.hidden * 2)
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
    fits members of unlike dtypes.
    """
    model = problem.model
    shared = shared or model.shared_ends
    members = [problem.index_of[shard.device] for shard in shards]
    devices = [problem.devices[member] for member in members]
    kv_share = np.array([shard.kv / model.kv_heads for shard in shards])
    mlp_share = np.array([shard.mlp / model.mlp_blocks for shard in shards])
    parameters = model.attention_parameters * kv_share + model.mlp_parameters * mlp_share
    ends = [
        end_bytes_of(problem, (rank, len(shards)), first=first, last=last, shared=shared)
        for rank in range(len(shards))
    ]
    memory = np.array([device.memory_bytes for device in devices], dtype=float)
    if problem.mixes(members):
        memory[:] = -np.inf
    latency, link_bandwidth = worst_link(problem, members)
    return StageForm(
        layers=layers,
        weight_bytes=parameters * model.bytes_per_weight,
        parameters=parameters,
        kv_bytes=model.kv_bytes * kv_share,
        kv_share=kv_share,
        bandwidth=np.array([d.memory_efficiency * d.bytes_per_second for d in devices]),
        flops=np.array([d.compute_efficiency * d.flops for d in devices]),
        free_bytes=memory - layers * parameters * model.bytes_per_weight - np.array(ends),
        head_bytes=model.end_bytes if last else 0.0,
        head_flop=2.0 * model.embedding_parameters,
        latency=latency,
        link_bandwidth=link_bandwidth,
        hidden=model.hidden,
    )


def worst_link(problem: Problem, members: list[int]) -> tuple[float, float]:
    """Highest latency and lowest bandwidth between any two of the members."""
    if len(members) == 1:
        return 0.0, np.inf
    machines = problem.machine_of[members]
    apart = ~np.eye(len(members), dtype=bool)
    grid = np.ix_(machines, machines)
    return float(problem.latency[grid][apart].max()), float(problem.bandwidth[grid][apart].min())
