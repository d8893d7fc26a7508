"""Route: the cheapest chain of advertised stages that covers every layer once; pure."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from swarm.errors import NoRoute
from swarm.records import Advert, Capability, StageAdvert

SAME_MACHINE_SECONDS = 0.0005
UNKNOWN_HOP_SECONDS = 0.02
SESSION_SHARE = 0.1  # how much one more session in a stage's batch slows a step, roughly
LEAVING_SECONDS = 1e3  # penalties: far above any step, so they only decide when there is a choice
NO_ROOM_SECONDS = 1e4
AVOIDED_SECONDS = 1e6

HopSeconds = Callable[[str, str], float]
NOBODY: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Need:
    """What a route must offer: the model, every one of its layers, room for `capacity` tokens."""

    model: str  # digest
    layers: int
    capacity: int
    avoid: frozenset[str] = frozenset()  # peers blamed lately: taken only if there is no other


@dataclass(frozen=True, slots=True)
class Route:
    """Advertised stages that cover every layer, in order."""

    stages: tuple[StageAdvert, ...]

    @property
    def leaders(self) -> tuple[str, ...]:
        """The peer to address at each hop."""
        return tuple(_leader(stage) for stage in self.stages)

    def to_wire(self) -> list[list[str | int]]:
        """Leader, start and end of every hop, as OPEN carries them."""
        hops = zip(self.leaders, self.stages, strict=True)
        return [[leader, stage.start, stage.end] for leader, stage in hops]


def choose_route(
    adverts: Iterable[Advert],
    need: Need,
    hop_seconds: HopSeconds | None = None,
    own: Mapping[str, int] = NOBODY,
) -> Route:
    """Return the route of the least time per token; raises NoRoute and says what is missing.

    `own` counts the asker's own sessions by leader, which adverts may not show yet.
    """
    hop = hop_seconds or hop_seconds_of({})
    offers = sorted(_offers(adverts, need, own), key=lambda offer: (offer[0].start, offer[0].end))
    costs: list[float] = []
    before: list[int] = []
    ends: dict[int, list[int]] = {}  # boundary -> the stages that end there and can be reached
    for number, (stage, seconds) in enumerate(offers):  # whoever ends at `start` began before it
        ways = [
            (costs[other] + hop(_leader(offers[other][0]), _leader(stage)), other)
            for other in ends.get(stage.start, ())
        ]
        cost, previous = min(ways, default=(0.0 if stage.start == 0 else math.inf, -1))
        costs.append(cost + seconds)
        before.append(previous)
        if math.isfinite(cost):
            ends.setdefault(stage.end, []).append(number)
    last = min(ends.get(need.layers, ()), key=costs.__getitem__, default=None)
    stages = [stage for stage, _ in offers]
    if last is None:
        raise no_route(stages, need.layers)
    return Route(tuple(_walk_back(stages, before, last)))


def hop_seconds_of(capabilities: Mapping[str, Capability]) -> HopSeconds:
    """One-way seconds between two peers, from the links that they measured themselves."""
    measured = {
        (peer, link.peer): link.round_trip_seconds / 2
        for peer, capability in capabilities.items()
        for link in capability.links
    }
    hosts = {peer: capability.host for peer, capability in capabilities.items()}

    def hop_seconds(one: str, other: str) -> float:
        if one == other:
            return 0.0
        known = measured.get((one, other), measured.get((other, one)))
        if known is not None:
            return known
        is_near = one in hosts and hosts[one] == hosts.get(other)
        return SAME_MACHINE_SECONDS if is_near else UNKNOWN_HOP_SECONDS

    return hop_seconds


def no_route(stages: Iterable[StageAdvert], layers: int) -> NoRoute:
    """The error that says which layers no stage covers."""
    held = {layer for stage in stages for layer in range(stage.start, stage.end)}
    missing = [layer for layer in range(layers) if layer not in held]
    if missing:
        cause = f"No live peer serves layers {_ranges(missing)} of {layers}."
    else:
        cause = f"The stages on offer do not join up to one chain over {layers} layers."
    return NoRoute(cause, "Wait until peers have loaded them (`swarm status`), or join with more.")


def _offers(
    adverts: Iterable[Advert], need: Need, own: Mapping[str, int]
) -> Iterator[tuple[StageAdvert, float]]:
    """Every usable stage with its cost in seconds for one token."""
    for advert in adverts:
        for stage in advert.stages if advert.model == need.model else ():
            if stage.end <= need.layers and math.isfinite(stage.step_seconds):
                leaving = LEAVING_SECONDS if advert.leaving else 0.0
                sessions = max(stage.sessions, own.get(_leader(stage), 0))
                yield stage, leaving + _seconds_of(stage, need, sessions)


def _seconds_of(stage: StageAdvert, need: Need, sessions: int) -> float:
    seconds = stage.step_seconds * (1 + SESSION_SHARE * sessions)
    seconds += NO_ROOM_SECONDS if stage.free_tokens < need.capacity else 0.0
    is_blamed = any(member.peer in need.avoid for member in stage.members)
    return seconds + (AVOIDED_SECONDS if is_blamed else 0.0)


def _walk_back(stages: list[StageAdvert], before: list[int], last: int) -> Iterator[StageAdvert]:
    chain = []
    while last >= 0:
        chain.append(stages[last])
        last = before[last]
    return reversed(chain)


def _leader(stage: StageAdvert) -> str:
    return stage.members[0].peer


def _ranges(layers: list[int]) -> str:
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer + 1 for layer in layers if layer + 1 not in layers]
    return ", ".join(f"[{start},{end})" for start, end in zip(starts, ends, strict=True))
