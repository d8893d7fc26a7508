"""GroupPool: a search's device groups, their tour through the network, and what sets are worth."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.cost.cost_model import CostModel
from planner.cost.criterion import latency_criterion
from planner.cost.roofline import least_row_bytes, speeds_of
from planner.device_classes import place_numbers, type_numbers
from planner.problem import Problem
from planner.search.device_group import DeviceGroup, group_of, group_with_shards
from planner.search.layer_balance import latency_layers, pipeline_of, throughput_layers
from planner.search.stage_table import Tables
from planner.search_params import DEFAULT_PARAMS, SearchParams
from swarm.plan import Pipeline, Shard

DeviceGroups = Sequence[DeviceGroup]
Key = tuple[tuple[int, bool], ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a set of groups is worth as one pipeline, and how: where its ring begins, and layers."""

    value: float  # tokens per second, or 1 / seconds of one request; 0 if it cannot work
    rotation: int = 0  # which group along the tour serves the first layers
    layers: tuple[int, ...] = ()


class GroupPool:
    """Makes device groups and evaluates sets of groups, each only once.

    Two groups are of one kind if their devices have equal speeds and stand in equal places; values
    are remembered by kinds, so that equal machines cost no further evaluation.
    """

    def __init__(
        self,
        problem: Problem,
        cost: CostModel,
        devices: Iterable[int] | None = None,
        params: SearchParams = DEFAULT_PARAMS,
    ) -> None:
        self.params = params
        self.problem = problem
        self.cost = cost
        self.devices = tuple(range(len(problem.devices)) if devices is None else devices)
        self._places = place_numbers(problem)
        self._tour = tour_positions(problem, params.local.rows_on_tour)
        self._types = type_numbers(problem)
        self._kinds: dict[tuple[tuple[int, int, int], ...], int] = {}
        self._groups: dict[tuple[int, ...], DeviceGroup | None] = {}
        self.tables = Tables(problem, latency_criterion(problem))
        self._adopted = 0
        self.work = 0  # groups evaluated so far: what a search has cost, without a clock
        self._evaluations: dict[tuple[str, Key], Evaluation] = {}

    def without(self, devices: Iterable[str]) -> "GroupPool":
        """A pool without these devices; what was solved for groups is kept."""
        gone = {self.problem.index_of[device] for device in devices}
        left = [device for device in self.devices if device not in gone]
        pool = GroupPool(self.problem, self.cost, left, self.params)
        pool.tables = self.tables
        return pool

    def group(self, members: Iterable[int]) -> DeviceGroup | None:
        """The group of these devices, or None if it cannot hold one layer."""
        key = tuple(sorted(members))
        if key not in self._groups:
            self._groups[key] = group_of(self.problem, key, self._kind(key))
        return self._groups[key]

    def adopt(self, members: tuple[int, ...], shards: tuple[Shard, ...]) -> DeviceGroup:
        """The group of these devices with a split given; of a kind of its own."""
        self._adopted += 1
        return group_with_shards(self.problem, members, shards, -self._adopted)

    def _kind(self, members: tuple[int, ...]) -> int:
        where = self.problem.machine_of
        machines = list(dict.fromkeys(int(where[m]) for m in members))
        key = tuple(
            (int(self._types[m]), int(self._places[where[m]]), machines.index(int(where[m])))
            for m in members
        )
        return self._kinds.setdefault(key, len(self._kinds))

    def type_number(self, device: int) -> int:
        """A number that devices of one type share."""
        return self._types[device]

    def tour_position(self, machine: int) -> int:
        """When the tour comes to a machine."""
        return self._tour[machine]

    def read_speed(self, machine: int) -> float:
        """Bytes per second that all devices of a machine read together."""
        devices = [self.problem.devices[d] for d in self.devices]
        name = self.problem.machines[machine]
        return sum(float(speeds_of(d).bytes_per_second) for d in devices if d.machine == name)

    def signature(self, devices: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """Equal for sets of devices that are alike in speeds and places."""
        where = self.problem.machine_of
        return tuple(sorted((self._types[d], self._places[where[d]]) for d in devices))

    def is_near(self, a: DeviceGroup, b: DeviceGroup) -> bool:
        """Whether a tensor-parallel group over both might pay: its messages are short enough."""
        where = self.problem.machine_of
        here, there = where[a.members[0]], where[b.members[0]]
        near = self.params.local.near_seconds
        return bool(here == there or self.problem.latency[here, there] <= near)

    def in_order(self, groups: Iterable[DeviceGroup]) -> list[DeviceGroup]:
        """The groups along the tour, the quicker first within a machine."""
        where = self.problem.machine_of
        return sorted(
            groups, key=lambda a: (self._tour[where[a.members[0]]], a.request_seconds, a.members)
        )

    def evaluate(self, groups: Iterable[DeviceGroup], objective: str) -> Evaluation:
        """The best that these groups can do as one pipeline."""
        ordered = self.in_order(groups)
        where = [int(self.problem.machine_of[group.members[0]]) for group in ordered]
        stays = [a == b for a, b in zip([-1, *where], where, strict=False)]
        key = (objective, tuple((a.kind, stay) for a, stay in zip(ordered, stays, strict=True)))
        if key not in self._evaluations:
            self.work += len(ordered)
            rotations = [
                self._evaluate_rotation(ordered, at, objective) for at in _rotations(ordered)
            ]
            self._evaluations[key] = max(rotations, key=lambda one: one.value)
        return self._evaluations[key]

    def _evaluate_rotation(self, ordered: DeviceGroups, at: int, objective: str) -> Evaluation:
        rotated = [*ordered[at:], *ordered[:at]]
        best = Evaluation(0.0)
        if objective == "latency":
            layers = latency_layers(self.cost, rotated)
            divisions = [layers] if layers else []
        else:
            divisions = throughput_layers(self.cost, rotated)
        for division in divisions:
            pipeline = pipeline_of(rotated, division)
            value = value_of(self.cost, pipeline, objective)
            if value > best.value:
                best = Evaluation(value, at, division)
        return best

    def build(self, groups: Iterable[DeviceGroup], objective: str) -> Pipeline | None:
        """The pipeline that was evaluated; None if it is worth nothing."""
        ordered, best = self.in_order(groups), self.evaluate(groups, objective)
        if not best.value:
            return None
        rotated = [*ordered[best.rotation :], *ordered[: best.rotation]]
        return pipeline_of(rotated, best.layers)


def value_of(cost: CostModel, pipeline: Pipeline, objective: str) -> float:
    """Tokens per second, or requests alone per second; 0 for a pipeline that does not fit."""
    if cost.room(pipeline) < 1:
        return 0.0
    return 1 / cost.latency(pipeline) if objective == "latency" else cost.throughput(pipeline)


def _rotations(ordered: DeviceGroups) -> list[int]:
    """Places to begin: as the tour goes, and so that the group best for the head comes last."""
    quick = min(range(len(ordered)), key=lambda i: ordered[i].head_request_seconds)
    return list(dict.fromkeys((0, (quick + 1) % len(ordered))))


def tour_positions(problem: Problem, rows: int) -> list[int]:
    """When a tour that always goes to the nearest machine visits each machine."""
    size = rows * least_row_bytes(problem)
    distance = problem.latency + size / problem.bandwidth
    left = set(range(1, len(distance)))
    at, position = 0, [0] * len(distance)
    for count in range(1, len(distance)):
        at = min(left, key=lambda m: (distance[at, m], m))
        left.discard(at)
        position[at] = count
    return position
