"""machine_bound: a request's least seconds when every machine that serves it costs a hop.

Layers are served inside one machine or by groups over several. Machines of the first sort follow
each other in a ring, from the first stage to the last and back, so that each, if there are two, is
left at least once: by a hop, or by way of a group over several machines of which it is a member.
The all-reduces of a layer of such a group take at least two hops of that machine. Which machines
serve how many layers is the least sum of hops and seconds that memory allows: a knapsack, solved
exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.bounds.device_rates import kinds_of
from planner.bounds.layer_time import (
    LARGEST_GROUP,
    Link,
    allreduce_seconds,
    alone_seconds,
    group_floors,
    shared_floor,
)
from planner.cost.roofline import TOKEN_BYTES, least_row_bytes, speeds_of
from planner.problem import Numbers, PlanDevice, Problem

MOST_EXTRAS = 6  # layers' worth of embedding and head that are counted
MANY_MACHINES = 100  # beyond that they are not
THRESHOLDS = 3  # ways to see machines as regions
Floor = tuple[float, float]  # least work and all-reduce of a layer in a group


@dataclass(frozen=True, slots=True)
class MachineFloor:
    """What a machine does at best: layers it can hold, and seconds of each."""

    most: int
    seconds: float


def least_machine_seconds(problem: Problem) -> float:
    """Seconds of one request that no pipeline undercuts, over several ways to see regions."""
    floors = [_floor(problem, number) for number in range(len(problem.machines))]
    groups = _spanning(problem)
    onward, back = _hop_tables(problem)
    return max(_least(problem, floors, groups, ring) for ring in _rings(onward, back))


@dataclass(frozen=True, eq=False, slots=True)
class Ring:
    """What leaving costs at least: each machine, and each region (a set of near machines)."""

    hops: Numbers  # seconds out of each machine
    regions: tuple[tuple[int, ...], ...]
    leaving: tuple[float, ...]  # seconds out of each region, beyond the dearest hop within
    saved: float  # the way of the sampled token back, cheaper than any other, at most


def _rings(onward: Numbers, back: Numbers) -> list[Ring]:
    """Machines as one region, and as regions of machines linked below several thresholds."""
    from scipy.sparse.csgraph import connected_components  # loaded late: help needs it not

    hops = _nearest(onward)
    own = float((hops - _nearest(back)).max())
    rings = [Ring(hops, (tuple(range(len(hops))),), (0.0,), own)]
    for threshold in _thresholds(onward):
        near = np.minimum(onward, onward.T) < threshold
        count, labels = connected_components(near, directed=False)
        if 1 < count < len(hops):
            regions = tuple(tuple(np.flatnonzero(labels == n).tolist()) for n in range(count))
            out = [_out_of(onward, region) for region in regions]
            saved = [o - _out_of(back, region) for o, region in zip(out, regions, strict=True)]
            dearest = [float(hops[list(region)].max()) for region in regions]
            leaving = tuple(max(0.0, o - d) for o, d in zip(out, dearest, strict=True))
            rings.append(Ring(hops, regions, leaving, max(own, *saved)))
    return rings


def _thresholds(onward: Numbers) -> list[float]:
    """Seconds above the widest gaps between hops of different length."""
    hops = np.unique(onward[np.isfinite(onward)])
    if len(hops) < 2:
        return []
    widest = np.argsort(-(hops[1:] / np.maximum(hops[:-1], 1e-12)), kind="stable")[:THRESHOLDS]
    return [float(hops[place + 1]) for place in widest]


def _nearest(seconds: Numbers) -> Numbers:
    """The least of every row; nothing where there is no other machine."""
    least: Numbers = seconds.min(axis=1)
    return np.where(np.isfinite(least), least, 0.0)


def _out_of(seconds: Numbers, region: Sequence[int]) -> float:
    rows = seconds[list(region)]
    return float(np.delete(rows, list(region), axis=1).min())


def _hop_tables(problem: Problem) -> tuple[Numbers, Numbers]:
    """Seconds from machine to machine of all activations, and of all sampled tokens."""
    load, row = problem.workload, least_row_bytes(problem)
    steps = load.output_tokens - 1

    def table(prompt_bytes: float, step_bytes: float) -> Numbers:
        per_byte = (prompt_bytes + steps * step_bytes) / problem.bandwidth
        seconds: Numbers = (1 + steps) * problem.latency + per_byte
        np.fill_diagonal(seconds, np.inf)
        return seconds

    return table(load.input_tokens * row, row), table(TOKEN_BYTES, TOKEN_BYTES)


def _least(
    problem: Problem, floors: Sequence[MachineFloor], groups: Sequence[Floor], ring: Ring
) -> float:
    """The least seconds if leaving machines and regions costs what the ring says."""
    layers = problem.model.layers
    extras = _extras(problem) if len(floors) <= MANY_MACHINES else 0
    alone = [layers * floor.seconds for floor in floors if floor.most >= layers + extras]
    ringed = float(_around(floors, ring, layers, extras)[-1, -1]) - ring.saved
    if not groups:
        return min([ringed, *alone])
    return min([ringed, *alone, _partly_spanned(floors, groups, ring, layers)])


def _partly_spanned(
    floors: Sequence[MachineFloor], groups: Sequence[Floor], ring: Ring, layers: int
) -> float:
    """The least if one layer at least is served by a group over several machines.

    Two bounds for each number of such layers: their all-reduces count whole and hops as nothing, or
    hops count and of the all-reduces one half.
    """
    whole, half = (
        min(work + part * allreduce for work, allreduce in groups) for part in (1.0, 0.5)
    )
    free = Ring(0 * ring.hops, (tuple(range(len(floors))),), (0.0,), 0.0)
    leaping = _around(floors, free, layers, 0)[0]
    hopping = np.minimum(_around(floors, ring, layers, 0)[0] - ring.saved, _by_one(floors, layers))
    spanned = np.arange(1, layers + 1)
    rest = layers - spanned
    least = np.maximum(leaping[rest] + spanned * whole, hopping[rest] + spanned * half)
    return float(least.min())


def _around(floors: Sequence[MachineFloor], ring: Ring, layers: int, extras: int) -> Numbers:
    """Least seconds by extras held and layers served, by machines of one region or of several."""
    shape = (extras + 1, layers + 1)
    several = np.full(shape, np.inf)
    several[0, 0] = 0.0
    within = np.full(shape, np.inf)
    for region, leaving in zip(ring.regions, ring.leaving, strict=True):
        chosen = [(floors[number], float(ring.hops[number])) for number in region]
        covered = _covered(chosen, np.where(np.isfinite(several), several + leaving, several))
        nothing = np.full(shape, np.inf)
        nothing[0, 0] = 0.0
        within = np.minimum(within, _covered(chosen, nothing))
        several = np.minimum(several, covered)
    best: Numbers = np.minimum(several, within)
    return best


def _floor(problem: Problem, machine: int) -> MachineFloor:
    """The least seconds of a layer on a machine's own devices, and what its memory holds."""
    devices = [problem.devices[n] for n in np.flatnonzero(problem.machine_of == machine)]
    link = (float(problem.latency[machine, machine]), float(problem.bandwidth[machine, machine]))
    unit = problem.model.layer_bytes + problem.model.kv_bytes * problem.workload.context
    most = int(sum(device.memory_bytes for device in devices) / unit + 1e-9)
    return MachineFloor(most, min(_within(problem, devices, n, link) for n in range(len(devices))))


def _within(problem: Problem, devices: Sequence[PlanDevice], at: int, link: Link) -> float:
    speeds = [speeds_of(device) for device in devices]
    own, others = speeds[at], [*speeds[:at], *speeds[at + 1 :]]
    floors = group_floors(problem, own, others, link)
    return min([alone_seconds(problem, own), *(work + allreduce for work, allreduce in floors)])


def _spanning(problem: Problem) -> list[Floor]:
    """Least work and all-reduce of a layer in groups over machines, by worst link and size."""
    kinds, found = kinds_of(problem), list[Floor]()
    devices = sum(kinds.values()) if len(problem.machines) > 1 else 1
    for members in range(2, min(devices, LARGEST_GROUP + 1) + 1):
        by_kind = {kind: allreduce_seconds(problem, kind.outside, members) for kind in kinds}
        for kind, allreduce in by_kind.items():
            others = [
                other.speeds
                for other, count in kinds.items()
                for _ in range(min(members, count - (other == kind)))
                if by_kind[other] <= allreduce
            ]
            if len(others) >= members - 1:
                work = shared_floor(problem, kind.speeds, others, members)
                found.append((work, allreduce))
    return found


def _extras(problem: Problem) -> int:
    """Layers' worth of memory that embedding and head take, rounded down for each."""
    unit = problem.model.layer_bytes + problem.model.kv_bytes * problem.workload.context
    return min(MOST_EXTRAS, 2 * int(problem.model.end_bytes / unit))


def _covered(machines: Sequence[tuple[MachineFloor, float]], start: Numbers) -> Numbers:
    """Least seconds by extras held (rows) and layers served (columns), given those without them.

    Every machine may join for its hop's seconds.
    """
    best = start.copy()
    counts = np.arange(best.shape[1], dtype=float)
    behind = counts[:, None] - counts[None, :]  # [layers, layers before the machine]
    for floor, hop in machines:
        before = best - counts * floor.seconds
        for more in range(min(len(best) - 1, floor.most) + 1):
            reach = (behind >= 1) & (behind <= floor.most - more)
            for held in range(len(best) - more):
                least = np.where(reach, before[held], np.inf).min(axis=1)
                reached = hop + counts * floor.seconds + least
                best[held + more] = np.minimum(best[held + more], reached)
    return best


def _by_one(machines: Sequence[MachineFloor], layers: int) -> Numbers:
    """Seconds of so many layers on the best single machine; nothing for none."""
    counts = np.arange(layers + 1.0)
    options = [np.where(counts <= m.most, counts * m.seconds, np.inf) for m in machines]
    best: Numbers = np.min(options, axis=0)
    return best
