"""Regroup: deal all devices of one speed in a pipeline anew, in groups of one size.

The local search fuses and parts atoms one by one; where many small devices hold one layer each,
only groups of all of them together round to whole layers better.
"""

from collections.abc import Callable

from planner.search.device_group import Atom
from planner.search.group_pool import Pool
from planner.search.operators import Layout, Part

SIZES = (1, 2, 3, 4)
SWEEPS = 2
GAIN = 1e-6
Worth = Callable[[Part], float]


def regrouped(pool: Pool, worth: Worth, layout: Layout) -> Layout:
    """The layout after every such change that raises the worth of its part."""
    for _ in range(SWEEPS):
        parts = tuple(_better(pool, worth, part) for part in layout.parts)
        if parts == layout.parts:
            break
        layout = Layout(parts, layout.spare)
    return layout


def _better(pool: Pool, worth: Worth, part: Part) -> Part:
    speeds = sorted({pool.speed(device) for atom in part for device in atom.members})
    for speed in speeds:
        own = [a for a in part if {pool.speed(device) for device in a.members} == {speed}]
        others = tuple(atom for atom in part if atom not in own)
        devices = [device for atom in own for device in atom.members]
        for size in SIZES[: len(devices)]:
            dealt = _dealt(pool, devices, size)
            tried = (*others, *dealt)
            if dealt and worth(tried) > worth(part) * (1 + GAIN):
                part = tried
    return part


def _dealt(pool: Pool, devices: list[int], size: int) -> list[Atom]:
    """Groups within machines first, of the rest along the tour; empty if one holds no layer."""
    machines: dict[int, list[int]] = {}
    for device in devices:
        machines.setdefault(int(pool.problem.machine_of[device]), []).append(device)
    groups, rest = list[list[int]](), list[int]()
    for machine in sorted(machines, key=pool.turn):
        members = machines[machine]
        whole = len(members) - len(members) % size
        groups += [members[i : i + size] for i in range(0, whole, size)]
        rest += members[whole:]
    groups += [rest[i : i + size] for i in range(0, len(rest), size)]
    atoms = [pool.atom(group) for group in groups]
    return [] if None in atoms else [atom for atom in atoms if atom is not None]
