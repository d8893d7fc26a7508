"""live_problem: from the capabilities that peers advertise to a planning problem."""

from collections.abc import Mapping
from dataclasses import dataclass

from planner.problem import PlanDevice, PlanModel, Problem, Workload, link_tables
from swarm.model import ModelSpec
from swarm.records import Capability

SAME_HOST = (50e-6, 2e9)  # one-way seconds and bytes/s where nothing was measured
FAR = (40e-3, 12e6)
INPUT_SHARE = 8  # one token in eight of a session is prompt


@dataclass(frozen=True, slots=True)
class MeasuredLinks:
    """Link rule over capabilities: own measurement, else the other side's, else a default."""

    capabilities: Mapping[str, Capability]

    def __call__(self, a: PlanDevice, b: PlanDevice) -> tuple[float, float]:
        """One-way seconds and bytes/s from a device of one peer to a device of another."""
        here, there = self.capabilities[a.machine], self.capabilities[b.machine]
        if a.machine == b.machine:
            return SAME_HOST
        measured = _measured(here, b.machine) or _measured(there, a.machine)
        return measured or (SAME_HOST if here.host == there.host else FAR)


def _measured(capability: Capability, peer: str) -> tuple[float, float] | None:
    for link in capability.links:
        if link.peer == peer:
            return link.round_trip_seconds / 2, link.bytes_per_second
    return None


def _devices_of(peer: str, capability: Capability) -> list[PlanDevice]:
    return [
        PlanDevice(
            id=f"{peer}/{device.index}",
            machine=peer,
            flops=device.flops,
            bytes_per_second=device.bytes_per_second,
            memory_bytes=device.memory_bytes,
            kind=device.name,
            region=capability.host,
        )
        for device in capability.devices
    ]


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
    devices = tuple(d for peer, c in staying.items() for d in _devices_of(peer, c))
    latency, bandwidth = link_tables(devices, MeasuredLinks(staying))
    prompt = max(1, context // INPUT_SHARE)
    return Problem(
        model=PlanModel.of_spec(
            spec, bytes_per_weight=bytes_per_weight, bytes_per_value=bytes_per_value
        ),
        devices=devices,
        latency=latency,
        bandwidth=bandwidth,
        workload=Workload(prompt, max(1, context - prompt)),
    )
