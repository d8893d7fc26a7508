"""Device counts: the devices of a problem in classes, for the bound over device counts.

A class is devices of one kind in one region.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from planner.bounds.device_rates import Kind, kind_of
from planner.problem import Problem

FAR = 3.0  # times the shortest way between machines: there another region begins
Counts = tuple[int, ...]


@dataclass(frozen=True)
class DeviceCounts:
    """Classes of devices, how many there are of each, and which stand on one machine."""

    kinds: tuple[Kind, ...]
    regions: tuple[int, ...]
    counts: Counts
    machines: frozenset[Counts]  # counts on one machine

    def is_local(self, group: Counts) -> bool:
        """Whether some machine has all these devices."""
        return any(
            all(g <= m for g, m in zip(group, machine, strict=True)) for machine in self.machines
        )

    @property
    def ways(self) -> float:
        """How many counts of devices there are."""
        return math.prod(count + 1.0 for count in self.counts)

    def merged(self) -> "DeviceCounts":
        """Classes alike but for their links as one, with the best links of all."""
        keys = [
            (kind.device, region) for kind, region in zip(self.kinds, self.regions, strict=True)
        ]
        known = list(dict.fromkeys(keys))
        belongs = np.array([[key == name for key in keys] for name in known], dtype=int)
        alike = [
            [k for k, key in zip(self.kinds, keys, strict=True) if key == name] for name in known
        ]
        return DeviceCounts(
            tuple(_with_best_links(kinds) for kinds in alike),
            tuple(name[-1] for name in known),
            tuple(int(count) for count in belongs @ np.array(self.counts)),
            frozenset(tuple(int(c) for c in belongs @ np.array(m)) for m in self.machines),
        )


def _with_best_links(kinds: list[Kind]) -> Kind:
    return replace(
        kinds[0],
        inside=(
            min(kind.inside[0] for kind in kinds),
            max(kind.inside[1] for kind in kinds),
            max(kind.inside[2] for kind in kinds),
        ),
        outside=(min(k.outside[0] for k in kinds), max(k.outside[1] for k in kinds)),
    )


def device_counts_of(problem: Problem) -> DeviceCounts:
    """Sort the devices of a problem into classes."""
    region = regions_of(problem)
    keys = [
        (kind_of(problem, i, d), region[problem.machine_of[i]])
        for i, d in enumerate(problem.devices)
    ]
    known = Counter(keys)
    place = {key: number for number, key in enumerate(known)}
    held = np.zeros((len(problem.machines), len(known)), dtype=int)
    for machine, key in zip(problem.machine_of, keys, strict=True):
        held[machine, place[key]] += 1
    return DeviceCounts(
        tuple(kind for kind, _ in known),
        tuple(number for _, number in known),
        tuple(known.values()),
        frozenset(tuple(int(c) for c in row) for row in held),
    )


def regions_of(problem: Problem) -> list[int]:
    """A region for every machine: those joined by ways not much longer than the shortest one."""
    size = len(problem.machines)
    region = list(range(size))
    apart = ~np.eye(size, dtype=bool)
    if size < 2:
        return region
    latency = np.minimum(problem.latency, problem.latency.T)
    near = latency <= FAR * max(float(latency[apart].min()), 1e-4)
    for a, b in np.argwhere(near & apart):
        old, new = region[a], region[b]
        region = [new if number == old else number for number in region]
    return region
