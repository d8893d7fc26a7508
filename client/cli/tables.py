"""Tables: peers, stages and plans as tables for people."""

from collections.abc import Callable, Mapping, Sequence

from client.cli.swarm_status import LONGEST_NAME, LinkView, SwarmStatus
from client.cli.terminal import Terminal
from client.generation import StageTiming
from client.routing.live_plan import LivePlan
from swarm.formatting import bytes_text, printable, short_id
from swarm.hardware import Device
from swarm.plan import Plan, Stage
from swarm.records import StageAdvert

LONGEST_WAY = 60  # characters: later versions may call the kinds of links what they like
LINKS_SHOWN = 24
UNNAMED = "-"  # its id stands beside it
DrawLayers = Callable[[Plan, Mapping[str, str]], str]  # the planner's picture of layers by device


def show_peers(terminal: Terminal, status: SwarmStatus) -> None:
    """A row for each device of each peer."""
    ways = status.ways()
    rows = [
        (
            status.name_of(peer) if capability.name else UNNAMED,
            short_id(peer),
            device.name,
            bytes_text(device.memory_bytes),
            device.dtype,
            f"{bytes_text(device.bytes_per_second)}/s",
            f"{device.flops / 1e9:.1f} GFLOP/s",
            printable(ways[peer], LONGEST_WAY),
            _role_of(peer, device, status),
        )
        for peer, capability in status.capabilities.items()
        for device in capability.devices
    ]
    paused = [
        (status.name_of(peer) if capability.name else UNNAMED, short_id(peer))
        + ("-",) * 5
        + (printable(ways[peer], LONGEST_WAY), "paused by its owner")
        for peer, capability in status.capabilities.items()
        if capability.paused
    ]
    terminal.table(
        ("name", "peer", "device", "memory", "dtype", "decode", "prefill", "reached", "serves"),
        rows + paused,
    )


def show_stages(terminal: Terminal, status: SwarmStatus) -> None:
    """A row for each stage on offer."""
    rows = [
        (
            layers_of(stage),
            ", ".join(status.name_of(member.peer) for member in stage.members),
            _shares(stage),
            f"{stage.step_seconds * 1000:.1f} ms",
            stage.free_tokens,
            stage.sessions,
        )
        for stage in status.stages
    ]
    terminal.table(("layers", "peers", "KV heads", "step", "free tokens", "sessions"), rows)


def show_idle(terminal: Terminal, status: SwarmStatus, why: Mapping[str, str]) -> None:
    """A line for each reason why devices serve nothing."""
    names = status.device_names()
    for reason in sorted(set(why.values())):
        idle = ", ".join(names[device] for device in why if why[device] == reason)
        terminal.line(f"idle: {idle}: {printable(reason, 500)}")


def show_links(terminal: Terminal, status: SwarmStatus) -> None:
    """Who relays, and how peers are connected: a row for each link, and why it is not direct."""
    for peer, relay in status.relays.items():
        name = printable(relay.name, LONGEST_NAME)
        terminal.line(f"relay: {f'{name} ' if name else ''}({short_id(peer)})")
    links = status.links()
    if links:
        header = ("link", "how", "round trip", "slower way", "why not direct")
        terminal.table(header, [_link_row(link, status) for link in links[:LINKS_SHOWN]])
    if len(links) > LINKS_SHOWN:
        terminal.line(f"links: {len(links) - LINKS_SHOWN} more, none of them farther from direct")


def show_planner(terminal: Terminal, status: SwarmStatus) -> None:
    """Who plans, in one line."""
    if status.planner:
        name = status.name_of(status.planner)
        terminal.line(f"planner: {name} ({short_id(status.planner)}), term {status.term}")
    else:
        terminal.line("planner: none elected yet")


def show_plan(terminal: Terminal, live: LivePlan, status: SwarmStatus, draw: DrawLayers) -> None:
    """The plan as a picture of layers by device, and why it is empty if it is."""
    terminal.line(f"plan of term {live.term} by {status.name_of(live.planner)}")
    if live.plan.pipelines:
        terminal.line(draw(live.plan, _labels_of(live.plan, status)))
    else:
        reason = printable(live.reason or "no device to plan with", 500)
        terminal.line(f"no pipeline: {reason}")


def show_plan_table(terminal: Terminal, live: LivePlan, status: SwarmStatus) -> None:
    """A row for each shard of the plan."""
    names = status.device_names()
    rows = [
        (
            number,
            layers_of(stage),
            names.get(shard.device, short_id(shard.peer)),
            shard.kv,
            shard.mlp,
        )
        for number, pipeline in enumerate(live.plan.pipelines, 1)
        for stage in pipeline.stages
        for shard in stage.shards
    ]
    terminal.table(("pipeline", "layers", "device", "KV heads", "MLP blocks"), rows)


def route_line(route: Sequence[StageAdvert], status: SwarmStatus | None = None) -> str:
    """A route in one line: layers and peers of each stage."""
    name_of = status.name_of if status else short_id
    return " -> ".join(
        f"{layers_of(stage)} " + "+".join(name_of(m.peer) for m in stage.members) for stage in route
    )


def layers_of(stage: StageAdvert | Stage | StageTiming) -> str:
    """First and last layer, as people count them in pictures and tables alike."""
    return f"{stage.start}-{stage.end - 1}"


def _labels_of(plan: Plan, status: SwarmStatus) -> dict[str, str]:
    """What the picture calls each device; those that a plan invents are escaped."""
    planned = {shard.device: printable(shard.device) for _, shard in plan.shards()}
    return planned | status.device_names()


def _link_row(link: LinkView, status: SwarmStatus) -> tuple[str, ...]:
    figures = ("not measured", "-")
    if link.is_measured:
        seconds, bytes_per_second = link.round_trip_seconds, link.bytes_per_second
        figures = (f"{seconds * 1000:.1f} ms", f"{bytes_text(bytes_per_second)}/s")
    return (
        " - ".join(map(status.name_of, link.peers)),
        printable(link.kind, LONGEST_WAY),
        *figures,
        link.why or "-",
    )


def _role_of(peer: str, device: Device, status: SwarmStatus) -> str:
    served = [
        layers_of(stage)
        for stage in status.stages
        if any((member.peer, member.device) == (peer, device.index) for member in stage.members)
    ]
    return ", ".join(served) or "idle"


def _shares(stage: StageAdvert) -> str:
    return ":".join(str(member.kv) for member in stage.members)
