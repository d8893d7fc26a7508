"""Which devices are alike, in themselves and in where they stand; groups of them as counts."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from planner.cost.roofline import Speeds, speeds_of
from planner.problem import Numbers, PlanDevice, Problem

Counts = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeviceType:
    """All that a device is apart from its place: devices of equal type are alike."""

    bytes_per_second: float  # effective
    flops: float  # effective
    memory_bytes: float
    dtype: str
    home: str = ""
    is_dialled: bool = True

    @classmethod
    def of(cls, device: PlanDevice) -> "DeviceType":
        """The type of a device."""
        speeds = speeds_of(device)
        reading, computing = float(speeds.bytes_per_second), float(speeds.flops)
        circle = device.home, device.is_dialled
        return cls(reading, computing, device.memory_bytes, device.dtype, *circle)

    @property
    def speeds(self) -> Speeds:
        """What such a device reaches."""
        return Speeds(self.bytes_per_second, self.flops)


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
    """Sort devices into classes: of one type, and in one machine or equally linked."""
    found: dict[tuple[DeviceType, int], list[int]] = {}
    for number in devices:
        kind = DeviceType.of(problem.devices[number])
        place = _place_of(problem, number, found, kind)
        found.setdefault((kind, place), []).append(number)
    return Classes(tuple(tuple(members) for members in found.values()))


def _place_of(
    problem: Problem,
    number: int,
    found: Iterable[tuple[DeviceType, int]],
    wanted: DeviceType,
) -> int:
    """The machine that stands for the device's place: of an equal device, or its own."""
    own = int(problem.machine_of[number])
    places = (place for kind, place in found if kind == wanted)
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


def type_numbers(problem: Problem) -> list[int]:
    """A number for every device, equal for devices of one type."""
    known: dict[DeviceType, int] = {}
    return [known.setdefault(DeviceType.of(each), len(known)) for each in problem.devices]


def place_numbers(problem: Problem) -> list[int]:
    """A number for every machine, equal for machines with the same links to all others."""
    known: dict[tuple[bytes, bytes, bytes], int] = {}
    places = []
    for number in range(len(problem.machines)):
        tables = (problem.latency, problem.bandwidth)
        rows = tuple(np.sort(np.delete(table[number], number)).tobytes() for table in tables)
        own = np.array([table[number, number] for table in tables]).tobytes()
        places.append(known.setdefault((rows[0], rows[1], own), len(known)))
    return places
