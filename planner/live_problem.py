"""live_problem: from the capabilities that peers advertise to a planning problem.

Sizes are those of the widest dtype at hand. A device that holds weights, KV and rows in less counts
as one of more memory that reads faster, by as much.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.problem import PlanDevice, PlanModel, Problem, Workload, link_tables
from swarm.hardware import SAME_HOST, WIDEST, WIDTHS, Device, Links, common_dtype
from swarm.model_spec import ModelSpec
from swarm.plan import Pipeline, Plan, Stage
from swarm.records import Capability

INPUT_SHARE = 8  # one token in eight of a session is prompt


# What a hop through a relay counts on top of what it takes. It is above any step that people would
# wait for: so a plan has such a hop only where there is none without. It bans nothing: one public
# host and two homes have no other plan.
RELAYED_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class PeerLinks:
    """Link rule over capabilities: one-way seconds and bytes/s from device to device."""

    links: Links

    def __call__(self, a: PlanDevice, b: PlanDevice) -> tuple[float, float]:
        """From a device of one peer to a device of another, or of the same."""
        way = SAME_HOST if a.machine == b.machine else self.links.way(a.machine, b.machine)
        return way.seconds + RELAYED_SECONDS * way.is_relayed, way.bytes_per_second


def _device_of(
    peer: str, capability: Capability, device: Device, model: PlanModel, context: int, home: str
) -> PlanDevice:
    shrinking = max(1.0, model.bytes_per_weight / device.weight_bytes)
    return PlanDevice(
        id=f"{peer}/{device.index}",
        machine=peer,
        flops=device.flops,
        bytes_per_second=device.bytes_per_second * shrinking,
        memory_bytes=_memory_of(device, shrinking, model, context),
        kind=device.name,
        region=capability.host,
        dtype=device.dtype,
        home=home,
        is_dialled=capability.reachable,
    )


def _homes_of(capabilities: Mapping[str, Capability]) -> dict[str, str]:
    """The home of each peer, or its machine; "" where everybody can be dialled from anywhere."""
    homes = {peer: each.home or each.host for peer, each in capabilities.items()}
    shut = {homes[peer] for peer, each in capabilities.items() if not each.reachable}
    return {peer: home if home in shut else "" for peer, home in homes.items()}


def _memory_of(device: Device, shrinking: float, model: PlanModel, context: int) -> float:
    """What a device of smaller weights counts as, where all weights count as equally large.

    In a dtype of half the width everything is half as large. Of int8 weights, only what layers may
    take beside the ends and the KV of a whole session stretches: a shard that fits the sum then
    fits the device, whichever layers and ends it gets.
    """
    narrowing = max(1.0, model.end_bytes_per_weight / WIDTHS[device.dtype])  # of ends and KV
    unshrunk = 2 * model.end_bytes + model.layers * model.kv_bytes * context
    stretched = unshrunk + (device.memory_bytes - unshrunk / narrowing) * shrinking
    return max(device.memory_bytes, stretched)


def as_float32(capabilities: Mapping[str, Capability]) -> dict[str, Capability]:
    """The same peers as if all of their devices computed in float32, so that any share a stage.

    Twice the width is half the arithmetic, at best.
    """
    return {
        peer: replace(
            capability, devices=[_device_as_float32(device) for device in capability.devices]
        )
        for peer, capability in capabilities.items()
    }


def _device_as_float32(device: Device) -> Device:
    share = WIDTHS[device.dtype] / WIDTHS[WIDEST]
    if share == 1:
        return device
    flops, width = device.flops * share, float(WIDTHS[WIDEST])
    return replace(device, dtype=WIDEST, weight_bytes=width, flops=flops)


def _dtypes_of(capabilities: Mapping[str, Capability]) -> dict[str, str]:
    return {
        f"{peer}/{device.index}": device.dtype
        for peer, capability in capabilities.items()
        for device in capability.devices
    }


def without_mixed_stages(plan: Plan, capabilities: Mapping[str, Capability]) -> Plan:
    """The plan without the pipelines in which devices of unlike dtypes share a stage."""
    dtypes = _dtypes_of(capabilities)

    def is_mixed(stage: Stage) -> bool:
        return len({dtypes[s.device] for s in stage.shards if s.device in dtypes}) > 1

    return Plan(tuple(p for p in plan.pipelines if not any(map(is_mixed, p.stages))))


def with_dtypes(plan: Plan, capabilities: Mapping[str, Capability]) -> Plan:
    """The plan with what every stage computes in: that of its devices if they agree, else f32."""
    dtypes = _dtypes_of(capabilities)

    def with_dtype(stage: Stage) -> Stage:
        wishes = (dtypes.get(shard.device, WIDEST) for shard in stage.shards)
        return replace(stage, dtype=common_dtype(wishes))

    return Plan(tuple(Pipeline(tuple(map(with_dtype, each.stages))) for each in plan.pipelines))


def live_problem(
    spec: ModelSpec,
    capabilities: Mapping[str, Capability],
    *,
    bytes_per_weight: float,
    bytes_per_value: int,
    context: int,
) -> Problem:
    """The problem of the peers at hand: least time of a request that fills `context` tokens.

    Peers that are leaving are left out; order is by peer id, so that equal snapshots make equal
    problems. Raises ValueError on nonsensical records.
    """
    staying = {peer: c for peer, c in sorted(capabilities.items()) if not c.leaving and c.devices}
    model = PlanModel.of_spec(
        spec, bytes_per_weight=bytes_per_weight, bytes_per_value=bytes_per_value
    )
    homes = _homes_of(staying)
    devices = tuple(
        _device_of(peer, capability, device, model, context, homes[peer])
        for peer, capability in staying.items()
        for device in capability.devices
    )
    latency, bandwidth = link_tables(devices, PeerLinks(Links.of(staying)))
    prompt = max(1, context // INPUT_SHARE)
    return Problem(
        model=model,
        devices=devices,
        latency=latency,
        bandwidth=bandwidth,
        workload=Workload(prompt, max(1, context - prompt)),
    )
