"""StageTable: least seconds of every group of devices for every number of layers."""

from dataclasses import dataclass, replace

import numpy as np

from planner.cost.criterion import Criterion, allreduce_seconds, unit_rates
from planner.cost.roofline import worst_link
from planner.device_classes import Classes, Counts, DeviceType, type_numbers
from planner.problem import Numbers, Problem
from planner.search.tensor_split import StageMembers, least_seconds
from planner.search.tensor_split_polish import Place

FEW_KINDS = 4  # unlike members among whom every leader is tried


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One group: seconds by layer count (entry 0 is infinite) in each place of a pipeline.

    In the first and last place they depend on the leader: one line for each of `leaders`.
    """

    counts: Counts
    members: tuple[int, ...]
    leaders: tuple[int, ...]
    middle: Numbers
    first: Numbers  # [leaders, layers + 1]
    last: Numbers
    only: Numbers  # the whole model; infinite below all layers

    @property
    def is_possible(self) -> bool:
        """Whether the group can hold one layer in any place."""
        one = (
            self.middle[1],
            self.first[:, 1].min(),
            self.last[:, 1].min(),
            self.only[:, -1].min(),
        )
        return bool(np.isfinite(one).any())

    def table(self, place: Place) -> Numbers:
        """The lines of that place, one for each leader or a single one."""
        if place.first:
            return self.only if place.last else self.first
        return self.last if place.last else self.middle[None, :]

    def leader(self, place: Place) -> int:
        """The member that leads best there."""
        return self.leaders[int(np.argmin(self.table(place)[:, place.layers]))]


class Tables:
    """Solved seconds of groups, remembered for all groups of like devices over like links."""

    def __init__(self, problem: Problem, criterion: Criterion) -> None:
        self.problem = problem
        self.criterion = criterion
        self._types = type_numbers(problem)
        self._known: dict[tuple[object, ...], Numbers] = {}

    def seconds(self, group: StageMembers) -> Numbers:
        """Least seconds by layer count; below all layers infinite if the group holds both ends."""
        kinds = tuple(self._types[member] for member in group.members)
        link = worst_link(self.problem, group.members)
        key = (kinds, link, group.first, group.last)
        if key not in self._known:
            layers = self.problem.model.layers
            begin = layers if group.first and group.last else 1
            every = np.arange(float(begin), layers + 1)
            solved = least_seconds(self.problem, group, self.criterion, every)
            self._known[key] = np.concatenate([np.full(begin, np.inf), solved])
        return self._known[key]


def row_of(tables: Tables, classes: Classes, counts: Counts) -> Row:
    """Solve the group's shares for every layer count and place."""
    problem = tables.problem
    members = tuple(classes.pick(counts, (0,) * len(counts)))
    leaders = leader_choices(problem, members)

    def seconds(leader: int, *, first: bool, last: bool) -> Numbers:
        return tables.seconds(StageMembers(with_leader_first(members, leader), first, last))

    embeds = members[:1] if problem.model.embedding_everywhere else leaders
    return Row(
        counts,
        members,
        tuple(leaders),
        middle=seconds(members[0], first=False, last=False),
        first=np.array([seconds(leader, first=True, last=False) for leader in embeds]),
        last=np.array([seconds(leader, first=False, last=True) for leader in leaders]),
        only=np.array([seconds(leader, first=True, last=True) for leader in leaders]),
    )


def with_true_seconds(row: Row, place: Place, seconds: float) -> Row:
    """The row with the seconds of one place, layer count and its best leader replaced."""
    if not (place.first or place.last):
        middle = row.middle.copy()
        middle[place.layers] = seconds
        return replace(row, middle=middle)
    table = row.table(place).copy()
    table[int(np.argmin(table[:, place.layers])), place.layers] = seconds
    if place.first:
        return replace(row, only=table) if place.last else replace(row, first=table)
    return replace(row, last=table)


def with_leader_first(members: tuple[int, ...], leader: int) -> tuple[int, ...]:
    """The members with the leader moved to the front."""
    return (leader, *(member for member in members if member != leader))


def leader_choices(problem: Problem, members: tuple[int, ...]) -> list[int]:
    """Members worth trying as leader: every kind in a small group, the extremes in a large one."""
    kinds = {DeviceType.of(problem.devices[member]): member for member in reversed(members)}
    choices = sorted(kinds.values())
    if len(choices) <= FEW_KINDS:
        return choices
    roomy = max(choices, key=lambda m: problem.devices[m].memory_bytes)
    by_speed = sorted(choices, key=lambda m: DeviceType.of(problem.devices[m]).bytes_per_second)
    return sorted({roomy, by_speed[0], by_speed[-1]})


def floor_seconds(problem: Problem, criterion: Criterion, members: tuple[int, ...]) -> float:
    """A lower bound on the seconds of one layer: fair shares without rounding or memory limits."""
    model = problem.model
    speeds = np.zeros(4)
    for member in members:
        head, block = unit_rates(problem, criterion, problem.devices[member])
        parts = np.minimum(head * model.kv_heads, np.inf) + block * model.mlp_blocks
        speeds += 1 / parts
    pure = 1 / speeds[[0, 3]]
    return float(pure.max()) + allreduce_seconds(problem, criterion, members)
