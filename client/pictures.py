"""Pictures: peers, stages and plans as tables for people."""

from collections.abc import Callable, Mapping, Sequence

from client.overview import LivePlan, Overview
from client.refusal import short
from client.screen import Screen
from swarm.hardware import Device
from swarm.plan import Plan
from swarm.records import StageAdvert

UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
DrawLayers = Callable[[Plan, Mapping[str, str]], str]  # the planner's picture of layers by device


def show_peers(screen: Screen, overview: Overview) -> None:
    """A row for each device of each peer."""
    rows = [
        (
            overview.name_of(peer),
            short(peer),
            device.name,
            amount(device.memory_bytes),
            device.dtype,
            f"{amount(device.bytes_per_second)}/s",
            f"{device.flops / 1e9:.1f} GFLOP/s",
            _role_of(peer, device, overview),
        )
        for peer, capability in overview.capabilities.items()
        for device in capability.devices
    ]
    screen.table(("name", "peer", "device", "memory", "dtype", "decode", "prefill", "serves"), rows)


def show_stages(screen: Screen, overview: Overview) -> None:
    """A row for each stage on offer."""
    rows = [
        (
            f"[{stage.start},{stage.end})",
            ", ".join(overview.name_of(member.peer) for member in stage.members),
            _shares(stage),
            f"{stage.step_seconds * 1000:.1f} ms",
            stage.free_tokens,
            stage.sessions,
        )
        for stage in overview.stages
    ]
    screen.table(("layers", "peers", "KV heads", "step", "free tokens", "sessions"), rows)


def show_planner(screen: Screen, overview: Overview) -> None:
    """Who plans, in one line."""
    if overview.planner:
        name = overview.name_of(overview.planner)
        screen.line(f"planner: {name} ({short(overview.planner)}), term {overview.term}")
    else:
        screen.line("planner: none elected yet")


def show_plan(screen: Screen, live: LivePlan, overview: Overview, draw: DrawLayers) -> None:
    """The plan as a picture of layers by device, and why it is empty if it is."""
    screen.line(f"plan of term {live.term} by {overview.name_of(live.planner)}")
    if live.plan.pipelines:
        screen.line(draw(live.plan, overview.device_names()))
    else:
        screen.line(f"no pipeline: {live.reason or 'no device to plan with'}")


def show_plan_table(screen: Screen, live: LivePlan, overview: Overview) -> None:
    """A row for each shard of the plan."""
    names = overview.device_names()
    rows = [
        (
            number,
            f"[{stage.start},{stage.end})",
            names.get(shard.device, short(shard.peer)),
            shard.kv,
            shard.mlp,
        )
        for number, pipeline in enumerate(live.plan.pipelines, 1)
        for stage in pipeline.stages
        for shard in stage.shards
    ]
    screen.table(("pipeline", "layers", "device", "KV heads", "MLP blocks"), rows)


def route_line(route: Sequence[StageAdvert], overview: Overview | None = None) -> str:
    """A route in one line: layers and peers of each stage."""
    name_of = overview.name_of if overview else short
    return " -> ".join(
        f"[{stage.start},{stage.end}) " + "+".join(name_of(m.peer) for m in stage.members)
        for stage in route
    )


def amount(size: float) -> str:
    """Bytes for people."""
    for factor, unit in UNITS:
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"


def _role_of(peer: str, device: Device, overview: Overview) -> str:
    served = [
        f"[{stage.start},{stage.end})"
        for stage in overview.stages
        if any((member.peer, member.device) == (peer, device.index) for member in stage.members)
    ]
    return ", ".join(served) or "stands by"


def _shares(stage: StageAdvert) -> str:
    return ":".join(str(member.kv) for member in stage.members)
