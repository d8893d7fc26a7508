"""DeviceGroup: devices with a fixed tensor split, ready to serve any number of layers.

Search over many devices works on device groups: their seconds are in proportion to layers and their
memory bounds the layers, so that layers can be balanced over them by arithmetic on arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost.criterion import batch_criterion
from planner.cost.stage_cost import StageForm, form_stage
from planner.problem import Numbers, Problem
from planner.search.tensor_split import StageMembers, best_split
from swarm.plan import Shard

BATCHES = np.unique(np.round(np.geomspace(1, 4096, 29)))  # batch sizes tried
SEQUENCES = np.unique(np.round(np.geomspace(1, 4096, 109)))  # sequences held that are tried
SPLIT_BATCH = 64.0  # batch for which a group's tensor split is solved


@dataclass(frozen=True, eq=False, slots=True)
class DeviceGroup:
    """Seconds of one layer over `BATCHES`, and most layers over `SEQUENCES`."""

    members: tuple[int, ...]
    shards: tuple[Shard, ...]
    kind: int  # groups of equal kind are interchangeable
    seconds: Numbers  # one layer, one saturated cycle of that batch
    head_seconds: Numbers
    request_seconds: float  # one layer, one request alone
    head_request_seconds: float
    layers: Numbers  # most layers with KV of so many sequences
    first_layers: Numbers  # the same with the embedding
    last_layers: Numbers  # with the head
    only_layers: Numbers  # with both

    def most_layers(self, *, first: bool, last: bool) -> Numbers:
        """Most layers in that place of a pipeline, by sequences."""
        if first:
            return self.only_layers if last else self.first_layers
        return self.last_layers if last else self.layers


def group_of(problem: Problem, members: tuple[int, ...], kind: int) -> DeviceGroup | None:
    """Split the layers of a group for a saturated batch; None if it cannot hold one layer."""
    criterion = batch_criterion(problem, SPLIT_BATCH, 1.0)
    shards = best_split(problem, StageMembers(members), criterion, 1)
    return group_with_shards(problem, members, shards, kind) if shards else None


def even_shards(problem: Problem, members: Sequence[int]) -> tuple[Shard, ...]:
    """Equal shares for all members, the first ones taking what does not divide; () if too many."""
    count, model = len(members), problem.model
    if count > model.kv_heads:
        return ()
    kv, mlp = divmod(model.kv_heads, count), divmod(model.mlp_blocks, count)
    return tuple(
        Shard(problem.devices[m].id, kv[0] + (i < kv[1]), mlp[0] + (i < mlp[1]))
        for i, m in enumerate(members)
    )


def group_with_shards(
    problem: Problem, members: tuple[int, ...], shards: tuple[Shard, ...], kind: int
) -> DeviceGroup:
    """The group of these members with their split given."""

    def form(*, first: bool = False, last: bool = False) -> StageForm:
        return form_stage(problem, shards, 1, first=first, last=last)

    middle, last = form(), form(last=True)
    seconds, ending = saturated_seconds(problem, middle), saturated_seconds(problem, last)
    alone, alone_last = request_seconds(problem, middle), request_seconds(problem, last)
    return DeviceGroup(
        members,
        shards,
        kind,
        seconds,
        np.maximum(ending - seconds, 0.0),
        alone,
        max(alone_last - alone, 0.0),
        most_layers(problem, middle),
        most_layers(problem, form(first=True)),
        most_layers(problem, last),
        most_layers(problem, form(first=True, last=True)),
    )


def saturated_seconds(problem: Problem, form: StageForm) -> Numbers:
    """Seconds of a decode pass of every batch, with the prefills that fall to it."""
    load = problem.workload
    prefill = form.prefill_seconds(load)
    return form.decode_seconds(load, BATCHES) + BATCHES * prefill / load.output_tokens


def request_seconds(problem: Problem, form: StageForm) -> float:
    """Seconds of one request alone: prefill and all further steps."""
    load = problem.workload
    step = float(form.decode_seconds(load, np.ones(1))[0])
    return form.prefill_seconds(load) + (load.output_tokens - 1) * step


def most_layers(problem: Problem, form: StageForm) -> Numbers:
    """Most layers by sequences held: weights and KV on every shard; from a one-layer form."""
    part = form.part
    per_layer = part.weight_bytes + part.kv_bytes * problem.workload.context * SEQUENCES
    room = np.maximum(form.free_bytes + part.weight_bytes, 0)
    fits: Numbers = np.floor(room / per_layer + 1e-9).min(axis=0)
    return np.minimum(fits, problem.model.layers)
