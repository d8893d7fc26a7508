"""Classes: devices that are interchangeable, and groups of them as counts for each class."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from planner.problem import Numbers, Problem

Counts = tuple[int, ...]
Alike = tuple[float, float, float, str]  # FLOP/s, bytes/s, memory and dtype


@dataclass(frozen=True, slots=True)
class Classes:
    """Members of every class, in order of the problem; equal members share machine and speeds."""

    members: tuple[tuple[int, ...], ...]

    @property
    def counts(self) -> Counts:
        """How many devices every class has."""
        return tuple(len(members) for members in self.members)

    @property
    def states(self) -> int:
        """Number of different groups, the empty one included."""
        product = 1
        for count in self.counts:
            product *= count + 1
        return product

    def groups(self) -> Iterator[Counts]:
        """Every group but the empty one."""
        ranges = [range(count + 1) for count in self.counts]
        return (group for group in itertools.product(*ranges) if any(group))

    def pick(self, group: Counts, taken: Counts) -> list[int]:
        """Devices of a group when `taken` of each class are used already."""
        return [
            member
            for members, begin, count in zip(self.members, taken, group, strict=True)
            for member in members[begin : begin + count]
        ]

    def links(self, problem: Problem) -> tuple[Numbers, Numbers]:
        """Latency and bandwidth from a device of one class to another device of each class."""
        here = problem.machine_of[[members[0] for members in self.members]]
        there = problem.machine_of[[members[-1] for members in self.members]]
        grid = np.ix_(here, there)
        return problem.latency[grid], problem.bandwidth[grid]


def classes_of(problem: Problem, devices: Iterable[int]) -> Classes:
    """Sort devices into classes: equal speeds, memory, dtype; in one machine or equally linked."""
    chosen = list(devices)
    found: dict[tuple[Alike, int], list[int]] = {}
    for number in chosen:
        device = problem.devices[number]
        key = (
            device.flops * device.compute_efficiency,
            device.bytes_per_second * device.memory_efficiency,
            device.memory_bytes,
            device.dtype,
        )
        place = _place_of(problem, number, found, key)
        found.setdefault((key, place), []).append(number)
    return Classes(tuple(tuple(members) for members in found.values()))


def _place_of(
    problem: Problem,
    number: int,
    found: Iterable[tuple[Alike, int]],
    key: Alike,
) -> int:
    """The machine that stands for the device's place: of an equal device, or its own."""
    own = int(problem.machine_of[number])
    places = (place for kind, place in found if kind == key)
    return next((p for p in places if _is_same_place(problem, own, p)), own)


def _is_same_place(problem: Problem, a: int, b: int) -> bool:
    """Whether swapping two machines of one device each changes no link."""
    if a == b:
        return True
    if max(problem.devices_in[a], problem.devices_in[b]) > 1:
        return False
    swap = np.arange(len(problem.machines))
    swap[[a, b]] = b, a
    tables = (problem.latency, problem.bandwidth)
    rows = all(np.array_equal(t[a][swap], t[b]) for t in tables)
    return rows and all(np.array_equal(t[:, a][swap], t[:, b]) for t in tables)
