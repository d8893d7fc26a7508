"""Tensor split: how the devices of one stage divide its KV heads and MLP blocks, unevenly.

For a time limit each member can hold so many MLP blocks beside k KV heads; a dynamic programme
over members finds whether the limit can be met, bisection finds the least limit. All layer counts
are solved at once: arrays run over cases (layer counts) and units of KV heads.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.cost.criterion import Criterion, allreduce_seconds, head_seconds, unit_rates
from planner.cost.roofline import layer_part
from planner.cost.stage_cost import end_bytes_of
from planner.problem import Numbers, Problem
from swarm.plan import Shard

NDBool = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
UNITS = 16  # KV heads are dealt in at most this many packs in tables
FINE_UNITS = 128  # and in the plan itself
HALVINGS = 24
SLACK = 5e-4  # time given up, at most, for an even spread of the KV cache


@dataclass(frozen=True, slots=True)
class StageMembers:
    """Members of a stage, leader first, and whether it holds the model's ends."""

    members: tuple[int, ...]
    first: bool = False
    last: bool = False


@dataclass(frozen=True, eq=False)
class SplitLimits:
    """Bounds of every member for one group: what fits in memory, what a time limit allows."""

    problem: Problem
    group: StageMembers
    criterion: Criterion
    layers: Numbers  # one entry for each case
    is_memory_free: bool = False  # as if memory were without end
    units: int = UNITS

    @property
    def pack(self) -> int:
        """KV heads dealt together: the least divisor of all heads that makes few enough packs."""
        heads = self.problem.model.kv_heads
        return next(p for p in range(1, heads + 1) if heads % p == 0 and heads // p <= self.units)

    def blocks_in_memory(self, rank: int) -> Numbers:
        """MLP blocks that fit beside each number of packs: [cases, packs + 1]."""
        problem, model = self.problem, self.problem.model
        if self.is_memory_free:
            return np.full((len(self.layers), len(self.heads)), float(model.mlp_blocks))
        device = problem.devices[self.group.members[rank]]
        group, shared = self.group, model.shared_ends
        place = rank, len(group.members)
        ends = end_bytes_of(problem, place, first=group.first, last=group.last, shared=shared)
        head = layer_part(model, 1 / model.kv_heads, 0.0)
        cached = problem.workload.context * self.criterion.sequences
        heads = self.heads * (head.weight_bytes + head.kv_bytes * cached)
        block = layer_part(model, 0.0, 1 / model.mlp_blocks).weight_bytes
        free = ((device.memory_bytes - ends) / self.layers)[:, None] - heads
        blocks: Numbers = np.floor(free / block + 1e-9)
        return np.where(free < 0, -np.inf, np.minimum(blocks, model.mlp_blocks))

    @cached_property
    def memory_limits(self) -> list[Numbers]:
        """`blocks_in_memory` of every member, worked out once."""
        return [self.blocks_in_memory(rank) for rank in range(len(self.group.members))]

    @cached_property
    def rates(self) -> list[tuple[Numbers, Numbers, float]]:
        """Every member's seconds per head and per block, and those of the head it computes."""
        problem, rates = self.problem, []
        for rank, member in enumerate(self.group.members):
            device = problem.devices[member]
            leads = self.group.last and rank == 0
            extra = head_seconds(problem, self.criterion, device) if leads else 0.0
            rates.append((*unit_rates(problem, self.criterion, device), extra))
        return rates

    @cached_property
    def heads(self) -> Numbers:
        """KV heads in 0, 1, 2 ... packs."""
        return np.arange(0, self.problem.model.kv_heads + 1, self.pack, dtype=float)

    @cached_property
    def least_blocks(self) -> Numbers:
        """MLP blocks that a shard must hold beside each number of packs."""
        units = self.problem.model.least_units
        least = np.full(len(self.heads), float(units))
        least[0] = np.inf if units else 1.0
        return least


def _blocks_in_time(limits: SplitLimits, rank: int, limit: Numbers) -> Numbers:
    """MLP blocks that a member finishes within `limit` beside each number of packs."""
    head, block, extra = limits.rates[rank]
    left = ((limit - extra) / limits.layers)[:, None, None]
    blocks = (left - np.multiply.outer(limits.heads, head)) / block
    reach = np.minimum(np.floor(blocks.min(axis=2) + 1e-9), limits.memory_limits[rank])
    return np.where(reach >= limits.least_blocks, reach, -np.inf)


def _most_blocks(reaches: list[Numbers]) -> list[Numbers]:
    """After each member: most MLP blocks held for each number of packs dealt so far."""
    stages = [reaches[0]]
    for reach in reaches[1:]:
        best = np.full_like(reach, -np.inf)
        for packs in range(reach.shape[1]):
            taken = stages[-1][:, : reach.shape[1] - packs] + reach[:, packs : packs + 1]
            np.maximum(best[:, packs:], taken, out=best[:, packs:])
        stages.append(best)
    return stages


def least_seconds(
    problem: Problem, group: StageMembers, criterion: Criterion, layers: Numbers
) -> Numbers:
    """The criterion's least seconds of the group for every layer count; infinite if none fits."""
    allreduce = layers * allreduce_seconds(problem, criterion, group.members)
    if len(group.members) == 1:
        return _alone(problem, group, criterion, layers)
    if not _is_divisible(problem, group.members):
        return np.full_like(layers, np.inf)
    if group.last:
        return _least_limit(SplitLimits(problem, group, criterion, layers)) + allreduce
    return _without_head(problem, group, criterion, layers) + allreduce


def _is_divisible(problem: Problem, members: tuple[int, ...]) -> bool:
    """Whether members may share a stage and get a block each, or each but a holder of KV heads."""
    most = problem.model.mlp_blocks + (problem.model.least_units == 0)
    return len(members) <= most and not problem.keeps_apart(members)


def _without_head(
    problem: Problem, group: StageMembers, criterion: Criterion, layers: Numbers
) -> Numbers:
    """As long as memory suffices, seconds are in proportion to layers: one case tells all."""
    one = np.ones(1)
    free = SplitLimits(problem, group, criterion, one, is_memory_free=True)
    layer = _least_limit(free)
    tight = SplitLimits(problem, group, criterion, layers)
    seconds = layer * layers
    binds = ~_meets(tight, seconds * (1 + 1e-9))
    if binds.any():
        seconds[binds] = _least_limit(SplitLimits(problem, group, criterion, layers[binds]))
    return seconds


def _alone(problem: Problem, group: StageMembers, criterion: Criterion, layers: Numbers) -> Numbers:
    model, device = problem.model, problem.devices[group.members[0]]
    head, block = unit_rates(problem, criterion, device)
    extra = head_seconds(problem, criterion, device) if group.last else 0.0
    layer = float((head * model.kv_heads + block * model.mlp_blocks).max())
    cache = model.kv_bytes * problem.workload.context * criterion.sequences
    held = end_bytes_of(problem, (0, 1), first=group.first, last=group.last)
    fits = held + layers * (model.layer_bytes + cache) <= device.memory_bytes
    return np.where(fits, layers * layer + extra, np.inf)


def _meets(limits: SplitLimits, limit: Numbers) -> NDBool:
    """For each case, whether the members together can hold a layer within the limit."""
    ranks = range(len(limits.group.members))
    reaches = [_blocks_in_time(limits, rank, limit) for rank in ranks]
    met: NDBool = _most_blocks(reaches)[-1][:, -1] >= limits.problem.model.mlp_blocks
    return met


def _least_limit(limits: SplitLimits) -> Numbers:
    possible = _meets(limits, np.full_like(limits.layers, 1e18))
    high = np.where(possible, fair_seconds(limits), 1.0)
    low = np.zeros_like(high)
    while not np.all(met := _meets(limits, high) | ~possible):
        low = np.where(met, low, high)
        high = np.where(met, high, 2 * high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        met = _meets(limits, middle)
        low, high = np.where(met, low, middle), np.where(met, middle, high)
    return np.where(possible, high, np.inf)


def fair_seconds(limits: SplitLimits) -> Numbers:
    """Seconds if every member could take just its fair, fractional share: never above the least."""
    problem, model = limits.problem, limits.problem.model
    speeds = np.zeros(4)
    for member in limits.group.members:
        head, block = unit_rates(problem, limits.criterion, problem.devices[member])
        speeds += 1 / (head * model.kv_heads + block * model.mlp_blocks)
    fair: Numbers = limits.layers * float((1 / speeds).max())
    return fair


def best_split(
    problem: Problem, group: StageMembers, criterion: Criterion, layers: int
) -> tuple[Shard, ...]:
    """The group's shards with the least seconds for so many layers; empty if they do not fit."""
    model = problem.model
    ids = [problem.devices[member].id for member in group.members]
    if len(ids) == 1:
        fits = np.isfinite(_alone(problem, group, criterion, np.array([float(layers)])))[0]
        return (Shard(ids[0], model.kv_heads, model.mlp_blocks),) if fits else ()
    if not _is_divisible(problem, group.members):
        return ()
    case = np.array([float(layers)])
    limits = SplitLimits(problem, group, criterion, case, units=FINE_UNITS)
    limit = _least_limit(limits)
    if not np.isfinite(limit[0]):
        return ()
    ranks = range(len(ids))
    loose = limit * (1 + SLACK)
    fair = [_blocks_in_time(limits, rank, loose)[0] for rank in ranks]
    least = [_blocks_in_time(limits, rank, limit)[0] for rank in ranks]
    return _shards(limits, ids, fair if _fair_packs(limits, fair) else least)


def _shards(limits: SplitLimits, ids: list[str], reaches: list[Numbers]) -> tuple[Shard, ...]:
    packs = _fair_packs(limits, reaches) or _best_packs(reaches)
    blocks = [int(reach[p]) for reach, p in zip(reaches, packs, strict=True)]
    least = [int(limits.least_blocks[p]) for p in packs]
    trimmed = _trim(blocks, least, sum(blocks) - limits.problem.model.mlp_blocks)
    heads = [limits.pack * p for p in packs]
    return tuple(Shard(i, kv, mlp) for i, kv, mlp in zip(ids, heads, trimmed, strict=True))


def _fair_packs(limits: SplitLimits, reaches: list[Numbers]) -> list[int]:
    """Packs in proportion to the members' speeds, if that meets the limit; it spreads the cache."""
    speeds = np.array([reach[0] if np.isfinite(reach[0]) else reach.max() for reach in reaches])
    whole = len(reaches[0]) - 1
    wish = whole * speeds / speeds.sum()
    packs = np.floor(wish).astype(int)
    for rank in np.argsort(packs - wish, kind="stable")[: whole - packs.sum()]:
        packs[rank] += 1
    held = sum(reach[p] for reach, p in zip(reaches, packs, strict=True))
    return [int(p) for p in packs] if held >= limits.problem.model.mlp_blocks else []


def _best_packs(reaches: list[Numbers]) -> list[int]:
    stages = [stage[0] for stage in _most_blocks([reach[None] for reach in reaches])]
    left = len(reaches[0]) - 1
    packs: list[int] = []
    for rank in range(len(reaches) - 1, 0, -1):
        options = [stages[rank - 1][left - p] + reaches[rank][p] for p in range(left + 1)]
        packs.append(int(np.argmax(options)))
        left -= packs[-1]
    return [left, *reversed(packs)]


def _trim(blocks: list[int], least: list[int], surplus: int) -> list[int]:
    """Take the surplus away, one by one, from whoever holds the largest part."""
    kept = list(blocks)
    for _ in range(surplus):
        spare = [held - low for held, low in zip(kept, least, strict=True)]
        kept[spare.index(max(spare))] -= 1
    return kept
