"""first_fit: a planner that searches nothing, where thousands of plans are made in one run."""

from collections.abc import Iterator, Mapping, Sequence

from swarm.model_spec import BYTES_PER_VALUE, ModelSpec
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import Capability

Room = dict[str, int]  # layers that a device can hold beside both ends


def first_fit(
    spec: ModelSpec,
    capabilities: Mapping[str, Capability],
    current: Plan | None,
    *,
    may_move: bool = True,
    reserves: Sequence[Stage] = (),
) -> tuple[Plan, str]:
    """Keep what is whole, mend what is not with the first idle device that fits, chain the rest."""
    room = dict(_rooms(spec, capabilities))
    kept = [mended for p in (current.pipelines if current else ()) if (mended := _mended(p, room))]
    idle = {device: layers for device, layers in room.items() if layers}
    plan = Plan((*kept, *_chains(idle, spec.layers)))
    return plan, "" if plan.pipelines else "Too few layers fit."


def _rooms(spec: ModelSpec, capabilities: Mapping[str, Capability]) -> Iterator[tuple[str, int]]:
    ends = BYTES_PER_VALUE * spec.embedding_parameters
    for peer, capability in sorted(capabilities.items()):
        for device in capability.devices:
            left = device.memory_bytes - ends
            yield f"{peer}/{device.index}", left // (BYTES_PER_VALUE * spec.layer_parameters) - 1


def _mended(pipeline: Pipeline, room: Room) -> Pipeline | None:
    """The pipeline with its lost devices replaced, whose room is taken; None if that fails."""
    there = {stage.shards[0].device for stage in pipeline.stages} & room.keys()
    taken = {device: room.pop(device) for device in there}
    stages: list[Stage] = []
    for stage in pipeline.stages:
        device = stage.shards[0].device
        if device not in there:
            device = next((d for d, n in room.items() if n >= stage.layers), "")
        if not device:
            room |= taken
            return None
        if device in room:
            taken[device] = room.pop(device)
        stages.append(_stage(device, stage.start, stage.end))
    return Pipeline(tuple(stages))


def _chains(idle: Room, layers: int) -> Iterator[Pipeline]:
    """Pipelines of idle devices, those with most room first."""
    stages: list[Stage] = []
    for device, room in sorted(idle.items(), key=lambda item: -item[1]):
        start = stages[-1].end if stages else 0
        stages.append(_stage(device, start, min(start + room, layers)))
        if stages[-1].end == layers:
            yield Pipeline(tuple(stages))
            stages = []


def _stage(device: str, start: int, end: int) -> Stage:
    return Stage(start, end, (Shard(device, 1, 1),))
