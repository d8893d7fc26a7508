"""Operators of the local search: small changes of which device groups serve together.

Merging, splitting and swapping pipelines' groups are those of HexGen's genetic search
(section 4.2); merging and splitting the groups themselves changes the tensor-parallel degree,
within a machine or over a link that may pay.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.search.device_group import DeviceGroup
from planner.search.group_pool import GroupPool

Part = tuple[DeviceGroup, ...]  # groups that serve as one pipeline
Value = Callable[[Part], float]
GAIN = 1e-6


@dataclass(frozen=True, slots=True)
class Partition:
    """Parts that serve as one pipeline each, and the groups left over."""

    parts: tuple[Part, ...]
    spare: Part = ()


@dataclass(frozen=True, slots=True)
class Change:
    """Replace the parts of these numbers by others, and the spares too."""

    old: tuple[int, ...]
    new: tuple[Part, ...]
    spare: Part

    def apply_to(self, partition: Partition) -> Partition:
        """The partition after the change; empty parts vanish."""
        kept = tuple(part for i, part in enumerate(partition.parts) if i not in self.old)
        return Partition(kept + tuple(part for part in self.new if part), self.spare)


def move_group(pool: GroupPool, partition: Partition, draw: random.Random) -> Change | None:
    """One group goes to another part, or from the spares into a part."""
    parts = partition.parts
    if (partition.spare and draw.random() < 0.5) or len(parts) < 2:
        return _recruit(partition, draw)
    i, j = draw.sample(range(len(parts)), 2)
    group = draw.choice(parts[i])
    return Change((i, j), (_without(parts[i], group), (*parts[j], group)), partition.spare)


def _recruit(partition: Partition, draw: random.Random) -> Change | None:
    if not partition.spare or not partition.parts:
        return None
    i, group = draw.randrange(len(partition.parts)), draw.choice(partition.spare)
    return Change((i,), ((*partition.parts[i], group),), _without(partition.spare, group))


def exchange_spare(pool: GroupPool, partition: Partition, draw: random.Random) -> Change | None:
    """A spare group replaces one that serves, or a group becomes a spare."""
    i = draw.randrange(len(partition.parts))
    gone = draw.choice(partition.parts[i])
    kept = _without(partition.parts[i], gone)
    spare = draw.choice((None, *partition.spare))
    if spare is None:
        return Change((i,), (kept,), (*partition.spare, gone))
    return Change((i,), ((*kept, spare),), (*_without(partition.spare, spare), gone))


def swap_groups(pool: GroupPool, partition: Partition, draw: random.Random) -> Change | None:
    """Two groups of unlike kind change places between parts."""
    parts = partition.parts
    if len(parts) < 2:
        return None
    i, j = draw.sample(range(len(parts)), 2)
    a, b = draw.choice(parts[i]), draw.choice(parts[j])
    if a.kind == b.kind:
        return None
    new = ((*_without(parts[i], a), b), (*_without(parts[j], b), a))
    return Change((i, j), new, partition.spare)


def merge_pipelines(pool: GroupPool, partition: Partition, draw: random.Random) -> Change | None:
    """Two parts become one."""
    if len(partition.parts) < 2:
        return None
    i, j = draw.sample(range(len(partition.parts)), 2)
    return Change((i, j), (partition.parts[i] + partition.parts[j],), partition.spare)


def split_pipeline(pool: GroupPool, partition: Partition, draw: random.Random) -> Change | None:
    """One part becomes two: cut along the tour, or dealt out in turn."""
    i = draw.randrange(len(partition.parts))
    ordered = pool.in_order(partition.parts[i])
    if len(ordered) < 2:
        return None
    at = draw.randint(1, len(ordered) - 1)
    halves = (ordered[:at], ordered[at:])
    if draw.random() < 0.5:
        halves = (ordered[::2], ordered[1::2])
    return Change((i,), (tuple(halves[0]), tuple(halves[1])), partition.spare)


def open_pipeline(pool: GroupPool, partition: Partition, draw: random.Random) -> Change | None:
    """The spares become a part of their own."""
    return Change((), (partition.spare,), ()) if partition.spare else None


def merge_groups(pool: GroupPool, partition: Partition, draw: random.Random) -> Change | None:
    """Two near groups of one part become one tensor-parallel group."""
    i = draw.randrange(len(partition.parts))
    a = draw.choice(partition.parts[i])
    near = [b for b in partition.parts[i] if b is not a and pool.is_near(a, b)]
    if not near:
        return None
    b = draw.choice(near)
    whole = pool.group((*a.members, *b.members))
    if whole is None:
        return None
    rest = _without(_without(partition.parts[i], a), b)
    return Change((i,), ((*rest, whole),), partition.spare)


def split_group(pool: GroupPool, partition: Partition, draw: random.Random) -> Change | None:
    """One tensor-parallel group becomes two."""
    i = draw.randrange(len(partition.parts))
    groups = [group for group in partition.parts[i] if len(group.members) > 1]
    if not groups:
        return None
    group = draw.choice(groups)
    at = draw.randint(1, len(group.members) - 1)
    halves = (pool.group(group.members[:at]), pool.group(group.members[at:]))
    if halves[0] is None or halves[1] is None:
        return None
    rest = _without(partition.parts[i], group)
    return Change((i,), ((*rest, halves[0], halves[1]),), partition.spare)


def _without(groups: Sequence[DeviceGroup], gone: DeviceGroup) -> Part:
    return tuple(group for group in groups if group is not gone)


OPERATORS = (
    (move_group, 6),
    (exchange_spare, 3),
    (swap_groups, 6),
    (merge_pipelines, 1),
    (split_pipeline, 1),
    (open_pipeline, 1),
    (merge_groups, 2),
    (split_group, 2),
)


def with_even_groups(pool: GroupPool, value: Value, partition: Partition) -> Partition:
    """All devices of one type in a pipeline in groups of one size, wherever that raises its value.

    The local search merges and splits groups one by one; where many small devices hold one layer
    each, only groups of all of them together round to whole layers better.
    """
    for _ in range(pool.params.local.sweeps):
        parts = tuple(_better_grouped(pool, value, part) for part in partition.parts)
        if parts == partition.parts:
            break
        partition = Partition(parts, partition.spare)
    return partition


def _better_grouped(pool: GroupPool, value: Value, part: Part) -> Part:
    types = sorted({pool.type_number(device) for group in part for device in group.members})
    for number in types:
        own = [a for a in part if {pool.type_number(d) for d in a.members} == {number}]
        others = tuple(group for group in part if group not in own)
        devices = [device for group in own for device in group.members]
        for size in pool.params.local.even_sizes[: len(devices)]:
            even = _even_groups(pool, devices, size)
            tried = (*others, *even)
            if even and value(tried) > value(part) * (1 + GAIN):
                part = tried
    return part


def _even_groups(pool: GroupPool, devices: list[int], size: int) -> list[DeviceGroup]:
    """Groups within machines first, of the rest along the tour; empty if one holds no layer."""
    machines: dict[int, list[int]] = {}
    for device in devices:
        machines.setdefault(int(pool.problem.machine_of[device]), []).append(device)
    groups, rest = list[list[int]](), list[int]()
    for machine in sorted(machines, key=pool.tour_position):
        members = machines[machine]
        whole = len(members) - len(members) % size
        groups += [members[i : i + size] for i in range(0, whole, size)]
        rest += members[whole:]
    groups += [rest[i : i + size] for i in range(0, len(rest), size)]
    found = [pool.group(members) for members in groups]
    return [] if None in found else [group for group in found if group is not None]
