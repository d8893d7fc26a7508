"""Partition: local search over which atoms serve together, for most tokens per second."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.search.device_group import Atom
from planner.search.group_pool import Pool
from planner.search.operators import MOVES, Change, Layout, Part
from planner.search.regroup import regrouped
from planner.stop import StopRule
from swarm.plan import Plan

PATIENCE = 300  # tries without a gain before the search rests, and more for each part
PATIENCE_PER_PART = 40
MOST_WORK = 8_000  # atoms priced from one start, so that large pools end, too
STARTS_KEPT = 2
MOST_STARTS = 24
GAIN = 1e-6
MUCH = 1.05  # times the value


@dataclass(frozen=True, eq=False, slots=True)
class Goal:
    """What a layout is worth: all parts for tokens per second, the best one for latency."""

    pool: Pool
    objective: str

    def worth(self, part: Part) -> float:
        """The value of the atoms as one pipeline; 0 if they cannot hold the model."""
        return self.pool.price(part, self.objective).value if part else 0.0

    def total(self, layout: Layout) -> float:
        """The value of all parts."""
        worths = [self.worth(part) for part in layout.parts]
        return max(worths, default=0.0) if self.objective == "latency" else sum(worths)

    def settled(self, layout: Layout) -> Layout:
        """The layout with parts that cannot work turned into spares."""
        idle = tuple(atom for p in layout.parts if not self.worth(p) for atom in p)
        return Layout(tuple(p for p in layout.parts if self.worth(p)), layout.spare + idle)

    def improved(self, layout: Layout, stop: StopRule, draw: random.Random) -> Layout:
        """Try random moves until many in a row gain nothing or the stop rule says so."""
        value, failures = self.total(layout), 0
        names, weights = [kind for kind, _ in MOVES], [weight for _, weight in MOVES]
        patience = PATIENCE + PATIENCE_PER_PART * len(layout.parts)
        budget = self.pool.work + MOST_WORK
        while failures < patience and self.pool.work < budget and not stop(-value):
            failures += 1
            if not layout.parts:
                break
            change = draw.choices(names, weights)[0](self.pool, layout, draw)
            if change is not None and self._pays(layout, change):
                layout = self.settled(change.applied(layout))
                value, failures = self.total(layout), 0
        return layout

    def _pays(self, layout: Layout, change: Change) -> bool:
        before = sum(self.worth(layout.parts[i]) for i in change.old)
        after = sum(self.worth(part) for part in change.new)
        return after > before * (1 + GAIN)

    def plan(self, layout: Layout) -> Plan:
        """The plan that the layout stands for."""
        built = [self.pool.build(part, self.objective) for part in layout.parts]
        return Plan(tuple(pipeline for pipeline in built if pipeline is not None))


def best_partition(
    goal: Goal, others: Sequence[Layout], stop: StopRule, seed: int
) -> tuple[float, Layout]:
    """The best layout found, and its value, from our own starts and `others`."""
    ranked = sorted([*others, *starts_of(goal.pool)], key=lambda layout: -goal.total(layout))
    draw = random.Random(seed)
    best = (0.0, Layout(()))
    for start in ranked[:STARTS_KEPT]:
        layout = goal.improved(_dealt_anew(goal, goal.settled(start)), stop, draw)
        best = max(best, (goal.total(layout), layout), key=lambda pair: pair[0])
        if stop(-best[0]):
            break
    return best


def _dealt_anew(goal: Goal, start: Layout) -> Layout:
    """The start regrouped if that gains much; small gains are better found atom by atom."""
    dealt = regrouped(goal.pool, goal.worth, start)
    return dealt if goal.total(dealt) > goal.total(start) * MUCH else start


def starts_of(pool: Pool) -> Iterator[Layout]:
    """Tilings of the machines, each split into 1, 2, 3 ... pipelines, near ones and mixed ones."""
    for atoms in tilings(pool):
        ordered = pool.in_order(atoms)
        for count in _counts(_most_pipelines(pool, ordered)):
            yield Layout(_contiguous(ordered, count))
            if count > 1:
                yield Layout(_dealt(ordered, count))


def tilings(pool: Pool) -> Iterator[list[Atom]]:
    """Machines cut into tensor-parallel groups of 1, 2, 4 ... devices; small devices united."""
    machines: dict[int, list[int]] = {}
    for number in pool.devices:
        machines.setdefault(int(pool.problem.machine_of[number]), []).append(number)
    largest = max(len(members) for members in machines.values())
    size = 1
    while size <= largest:
        cut = [a for members in machines.values() for a in _cut(pool, members, size)]
        if cut:
            yield cut
        size *= 2


def _cut(pool: Pool, members: Sequence[int], size: int) -> Iterator[Atom]:
    """Groups of `size`; where one cannot hold a layer, a larger one."""
    at = 0
    while at < len(members):
        atom, end = None, at + size - 1
        while atom is None and end < len(members):
            end += 1
            atom = pool.atom(members[at:end])
        if atom is not None:
            yield atom
        at = max(end, at + 1)


def _most_pipelines(pool: Pool, ordered: Sequence[Atom]) -> int:
    """Pipelines that memory could hold."""
    layers = sum(float(atom.layers[0]) for atom in ordered)
    return max(1, min(len(ordered), int(layers / pool.problem.model.layers)))


def _counts(most: int) -> list[int]:
    """Numbers of pipelines to try: all of them if few, else spread evenly by ratio."""
    if most <= MOST_STARTS:
        return list(range(1, most + 1))
    return sorted({round(most ** (i / (MOST_STARTS - 1))) for i in range(MOST_STARTS)})


def _contiguous(ordered: Sequence[Atom], count: int) -> tuple[Part, ...]:
    """Neighbours on the tour together, in parts of about equal speed."""
    speeds = [1 / atom.seconds[len(atom.seconds) // 2] for atom in ordered]
    whole, done = sum(speeds), 0.0
    parts: list[list[Atom]] = [[] for _ in range(count)]
    for atom, speed in zip(ordered, speeds, strict=True):
        parts[min(count - 1, int((done + speed / 2) / whole * count))].append(atom)
        done += speed
    return tuple(tuple(part) for part in parts if part)


def _dealt(ordered: Sequence[Atom], count: int) -> tuple[Part, ...]:
    """Every part gets a like mix of atoms."""
    by_kind = sorted(ordered, key=lambda atom: (atom.request_seconds, atom.kind))
    return tuple(tuple(by_kind[i::count]) for i in range(count))
