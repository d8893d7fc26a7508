"""moved_bytes: what every device must load to get from one plan to another."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.roofline import layer_part
from planner.device_classes import DeviceType
from planner.problem import Problem
from swarm.plan import Pipeline, Plan, Shard, Stage

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Holdings:
    """What devices hold: the plan in force, and stages that they serve beside it."""

    plan: Plan
    reserves: tuple[Stage, ...] = ()

    def shards(self) -> Iterator[tuple[Stage, Shard]]:
        """Every shard with its stage."""
        yield from self.plan.shards()
        for stage in self.reserves:
            for shard in stage.shards:
                yield stage, shard


def moved_bytes(problem: Problem, old: Plan | Holdings, new: Plan) -> dict[str, float]:
    """Weight bytes that each device of the new plan lacks; devices that lack none are left out."""
    before = {shard.device: stage for stage, shard in old.shards()}
    stages = dict.fromkeys(stage for stage, _ in new.shards())
    lacks = [lacking_bytes(problem, before, stage) for stage in stages]
    return {device: size for lack in lacks for device, size in lack.items() if size > 0}


def lacking_bytes(problem: Problem, held: Mapping[str, Stage], stage: Stage) -> dict[str, float]:
    """Weight bytes of a stage that each of its devices lacks, given the stage it holds now."""
    ids = [shard.device for shard in stage.shards]
    return {device: _lacking(problem, held.get(device), stage, device, device) for device in ids}


def least_moved_bytes(problem: Problem, old: Plan, pipelines: int) -> float:
    """No plan of so many pipelines loads fewer bytes.

    Every pipeline holds every layer once; of `pipelines` copies those are missing whose holders
    have left, however the devices that stay are used.
    """
    held = np.zeros(problem.model.layers)
    for stage, shard in old.shards():
        if shard.device in problem.index_of:
            held[stage.start : stage.end] += _shard_bytes(problem, shard)
    missing = pipelines * problem.model.layer_bytes - held
    return float(np.maximum(missing, 0.0).sum())


def _shard_bytes(problem: Problem, shard: Shard) -> float:
    """Bytes of one layer that a shard holds."""
    model = problem.model
    part = layer_part(model, shard.kv / model.kv_heads, shard.mlp / model.mlp_blocks)
    return float(part.weight_bytes)


def load_seconds(problem: Problem, moved: dict[str, float]) -> float:
    """Seconds until the last device has loaded what it lacks."""
    devices = problem.devices
    rates = {device.id: device.load_bytes_per_second for device in devices}
    return max((size / rates[device] for device, size in moved.items()), default=0.0)


def with_least_loading(problem: Problem, old: Plan | Holdings, new: Plan) -> Plan:
    """The new plan with equal devices of one machine exchanged so that least is loaded."""
    from scipy.optimize import linear_sum_assignment  # loaded late: help needs it not

    kinds = {d.id: (d.machine, DeviceType.of(d)) for d in problem.devices}
    slots: dict[tuple[str, DeviceType], list[tuple[Stage, str]]] = {}
    for stage, shard in new.shards():
        slots.setdefault(kinds[shard.device], []).append((stage, shard.device))
    before = {shard.device: stage for stage, shard in old.shards()}
    renamed: dict[str, str] = {}
    for key, places in slots.items():
        alike = [device for device, kind in kinds.items() if kind == key]
        cost = [
            [_lacking(problem, before.get(d), stage, place, d) for d in alike]
            for stage, place in places
        ]
        rows, columns = linear_sum_assignment(np.array(cost))
        renamed |= {places[r][1]: alike[c] for r, c in zip(rows, columns, strict=True)}
    return _renamed(new, renamed)


def _renamed(plan: Plan, names: Mapping[str, str]) -> Plan:
    pipelines = []
    for pipeline in plan.pipelines:
        stages = [
            replace(stage, shards=tuple(replace(s, device=names[s.device]) for s in stage.shards))
            for stage in pipeline.stages
        ]
        pipelines.append(Pipeline(tuple(stages)))
    return Plan(tuple(pipelines))


def _lacking(problem: Problem, old: Stage | None, new: Stage, place: str, device: str) -> float:
    """Bytes that a device lacks to take the place of a shard of the new stage."""
    model = problem.model
    heads, columns = _held(new, place)
    known = 0
    common_heads = common_columns = 0.0
    if old is not None:
        known = max(0, min(old.end, new.end) - max(old.start, new.start))
        old_heads, old_columns = _held(old, device)
        common_heads, common_columns = _common(heads, old_heads), _common(columns, old_columns)
    head = float(layer_part(model, 1 / model.kv_heads, 0.0).weight_bytes)
    block = float(layer_part(model, 0.0, 1 / model.mlp_blocks).weight_bytes)
    whole = (heads[1] - heads[0]) * head + (columns[1] - columns[0]) * block
    return new.layers * whole - known * (common_heads * head + common_columns * block)


def _held(stage: Stage, device: str) -> tuple[Interval, Interval]:
    """The KV heads and the MLP blocks that a device holds, as intervals."""
    heads = columns = 0
    for shard in stage.shards:
        if shard.device == device:
            return (heads, heads + shard.kv), (columns, columns + shard.mlp)
        heads, columns = heads + shard.kv, columns + shard.mlp
    raise ValueError(f"{device} is not in stage [{stage.start},{stage.end})")


def _common(a: Interval, b: Interval) -> float:
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
