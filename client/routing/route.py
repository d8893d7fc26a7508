"""Route: the cheapest chain of advertised stages that covers every layer once; pure."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from swarm.errors import NoRoute
from swarm.hardware import Links
from swarm.records import Advert, Capability, StageAdvert

LEAST_LAYER_SECONDS = 0.00002  # no device passes a layer sooner: a claim of less is taken as this
LONGEST_STEP_SECONDS = 60.0  # of a stage or a hop; a claim of more would hide the penalties
SESSION_SHARE = 0.1  # how much one more session in a stage's batch slows a step, roughly
LEAVING_SECONDS = 1e3  # penalties: far above any step, so they only decide when there is a choice
UNPLANNED_SECONDS = 1e2
NO_ROOM_SECONDS = 1e4
AVOIDED_SECONDS = 1e6
MOST_STRIKES = 100  # that make a peer worse
NOWHERE = Links({}, {})
DIALLED = "dialled"  # what peers have in common that anybody can dial


@dataclass(frozen=True, slots=True)
class Need:
    """What a route must offer: the model, every one of its layers, room for `capacity` tokens."""

    model: str  # digest
    layers: int
    capacity: int
    avoid: frozenset[str] = frozenset()  # peers blamed lately: taken only if there is no other
    strikes: Mapping[str, int] = field(default_factory=dict)  # how often they failed this request
    ends: frozenset[str] = frozenset()  # who may serve first and last layers; empty: anybody


@dataclass(frozen=True, slots=True)
class Route:
    """Advertised stages that cover every layer, in order."""

    stages: tuple[StageAdvert, ...]

    @property
    def leaders(self) -> tuple[str, ...]:
        """The peer to address at each hop."""
        return tuple(leader_of(stage) for stage in self.stages)

    @property
    def members(self) -> frozenset[str]:
        """Every peer that has a part in it."""
        return frozenset(member.peer for stage in self.stages for member in stage.members)

    def to_wire(self) -> list[list[str | int]]:
        """Leader, start and end of every hop, as OPEN carries them."""
        hops = zip(self.leaders, self.stages, strict=True)
        return [[leader, stage.start, stage.end] for leader, stage in hops]


@dataclass(frozen=True, slots=True)
class HopTimes:
    """One-way seconds between peers: as one of the two measured them, else by where they are."""

    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # in both directions
    places: Links = NOWHERE

    @classmethod
    def of(cls, capabilities: Mapping[str, Capability]) -> "HopTimes":
        """The ways between peers by their capabilities."""
        links = Links.of(capabilities)
        measured = {
            peer: {other: min(way.seconds, LONGEST_STEP_SECONDS) for other, way in ways.items()}
            for peer, ways in links.measured.items()
        }
        return cls(measured, links)

    def neighbours(self, peer: str) -> Mapping[str, float]:
        """The peers whose distance from this one was measured, with the seconds to get here."""
        return self.measured.get(peer, {})

    def seconds(self, one: str, other: str) -> float:
        """From one peer to another."""
        if one == other:
            return 0.0
        known = self.neighbours(one).get(other)
        return self.places.way(one, other).seconds if known is None else known

    def circles(self, peer: str) -> list[str]:
        """What a peer has in common with those that are nearer to it where nobody measured."""
        where = self.places
        known = [("host", where.hosts.get(peer)), ("home", where.homes.get(peer))]
        shared = [f"{kind} {name}" for kind, name in known if name is not None]
        return shared if peer in where.undialled else [*shared, DIALLED]


StageSeconds = Callable[[StageAdvert], float]
Place = tuple[str, int, int]  # leader, first layer, end


def claimed_seconds(stage: StageAdvert) -> float:
    """A stage's own word on its step, as far as it can be true of any device."""
    return max(stage.step_seconds, LEAST_LAYER_SECONDS * (stage.end - stage.start))


@dataclass(frozen=True, slots=True)
class Known:
    """What the asker knows besides the adverts: ways, its own sessions by leader, real speeds."""

    hops: HopTimes = field(default_factory=HopTimes)
    own: Mapping[str, int] = field(default_factory=dict)  # which adverts may not show yet
    step_seconds: StageSeconds = claimed_seconds
    planned: frozenset[Place] = frozenset()  # stages of the plan that counts; empty: not known


def choose_route(adverts: Iterable[Advert], need: Need, known: Known | None = None) -> Route:
    """Return the route of the least time per token; raises NoRoute and says what is missing.

    Linear in stages and measured links, so that nobody's adverts can hold the asker up for long.
    """
    known = known or Known()
    offers = sorted(_offers(adverts, need, known), key=attrgetter("start"))
    arrivals: dict[int, _Arrivals] = {0: _Arrivals(known.hops)}
    for start, group in groupby(offers, key=attrgetter("start")):
        here = arrivals.get(start)
        if here is None:
            continue  # no chain of stages leads here
        for offer in group:
            before, cost = here.nearest(offer.leader) if start else (None, 0.0)
            arrived = _Arrival(offer, cost + offer.seconds, before)
            arrivals.setdefault(offer.stage.end, _Arrivals(known.hops)).add(arrived)
    last = arrivals[need.layers].cheapest if need.layers in arrivals else None
    if last is None:
        if problem := _untrusted_end(offers, need):
            raise problem
        raise no_route((offer.stage for offer in offers), need.layers)
    return Route(tuple(reversed(list(_walk_back(last)))))


def no_route(stages: Iterable[StageAdvert], layers: int) -> NoRoute:
    """The error that says which layers no stage covers."""
    held = {layer for stage in stages for layer in range(stage.start, stage.end)}
    missing = [layer for layer in range(layers) if layer not in held]
    if missing:
        cause = f"No live peer serves layers {_ranges(missing)} of {layers}."
    else:
        cause = f"The stages on offer do not join up to one chain over {layers} layers."
    return NoRoute(cause, "Wait until peers have loaded them (`swarm status`), or join with more.")


def is_trusted(stage: StageAdvert, need: Need) -> bool:
    """Whether a stage may see the text that it would see."""
    is_end = stage.start == 0 or stage.end == need.layers
    return not (need.ends and is_end) or all(m.peer in need.ends for m in stage.members)


def _untrusted_end(offers: Iterable["_Offer"], need: Need) -> NoRoute | None:
    """The error for ends that only peers hold which are not trusted with them, if that is so."""
    known = list(offers)
    first = any(offer.start == 0 for offer in known)
    last = any(offer.stage.end == need.layers for offer in known)
    if not need.ends or (first and last):
        return None
    return NoRoute(
        f"No peer trusted with text serves the {'last' if first else 'first'} layers.",
        "Name more peers with --trusted-ends, or wait until one of them serves there.",
    )


def load_factor(sessions: int) -> float:
    """How much slower a step is with so many other sessions in it."""
    return 1 + SESSION_SHARE * sessions


def leader_of(stage: StageAdvert) -> str:
    """The peer that speaks for a stage."""
    return stage.members[0].peer


def place_of(stage: StageAdvert) -> Place:
    """What tells a stage from others: who leads it, and its layers."""
    return leader_of(stage), stage.start, stage.end


@dataclass(frozen=True, slots=True)
class _Offer:
    """A usable stage with its cost in seconds for one token."""

    stage: StageAdvert
    leader: str
    seconds: float

    @property
    def start(self) -> int:
        return self.stage.start


@dataclass(frozen=True, slots=True)
class _Arrival:
    """The cheapest way that ends with this offer."""

    offer: _Offer
    cost: float
    before: "_Arrival | None"


class _Arrivals:
    """All ways that end at one boundary, the cheapest of each peer, ready to be asked for more.

    A hop depends on the two peers only: so of a peer's ways one is enough, and of those whose hop
    nobody measured the cheapest, and the cheapest of each machine and home, and of those that can
    be dialled. That makes the search linear.
    """

    def __init__(self, hops: HopTimes) -> None:
        self._hops = hops
        self._of_peer: dict[str, _Arrival] = {}
        self._ranked: list[_Arrival] | None = None  # once nothing comes any more
        self._of_circle: dict[str, list[_Arrival]] = {}
        self._found: dict[str, tuple[_Arrival | None, float]] = {}

    def add(self, arrival: _Arrival) -> None:
        """Take another way that ends here."""
        kept = self._of_peer.get(arrival.offer.leader)
        if kept is None or arrival.cost < kept.cost:
            self._of_peer[arrival.offer.leader] = arrival

    @property
    def cheapest(self) -> _Arrival | None:
        """The cheapest way that ends here."""
        return min(self._of_peer.values(), key=attrgetter("cost"), default=None)

    def nearest(self, peer: str) -> tuple[_Arrival | None, float]:
        """The cheapest way from here on to a peer, with its cost, the hop included."""
        if peer not in self._found:
            ways = [(each, self._cost_to(peer, each)) for each in self._worth_trying(peer)]
            self._found[peer] = min(ways, key=lambda way: way[1], default=(None, math.inf))
        return self._found[peer]

    def _cost_to(self, peer: str, arrival: _Arrival) -> float:
        return arrival.cost + self._hops.seconds(arrival.offer.leader, peer)

    def _worth_trying(self, peer: str) -> Iterator[_Arrival]:
        measured = self._hops.neighbours(peer)
        for other in (measured.keys() | {peer}) & self._of_peer.keys():
            yield self._of_peer[other]
        ranking = self._ranking()
        circles = dict.fromkeys((*self._hops.circles(peer), DIALLED))
        for ranked in (ranking, *(self._of_circle.get(each, []) for each in circles)):
            rest = (each for each in ranked if each.offer.leader not in measured)
            if (first := next(rest, None)) is not None:
                yield first

    def _ranking(self) -> list[_Arrival]:
        if self._ranked is None:
            self._ranked = sorted(self._of_peer.values(), key=attrgetter("cost"))
            for arrival in self._ranked:
                for circle in self._hops.circles(arrival.offer.leader):
                    self._of_circle.setdefault(circle, []).append(arrival)
        return self._ranked


def _offers(adverts: Iterable[Advert], need: Need, known: Known) -> Iterator[_Offer]:
    for advert in adverts:
        for stage in advert.stages if advert.model == need.model else ():
            is_usable = stage.end <= need.layers and math.isfinite(stage.step_seconds)
            if is_usable and is_trusted(stage, need):
                leaving = LEAVING_SECONDS if advert.leaving else 0.0
                yield _Offer(stage, leader_of(stage), leaving + _seconds_of(stage, need, known))


def _seconds_of(stage: StageAdvert, need: Need, known: Known) -> float:
    sessions = max(stage.sessions, known.own.get(leader_of(stage), 0))
    seconds = min(known.step_seconds(stage) * load_factor(sessions), LONGEST_STEP_SECONDS)
    seconds += UNPLANNED_SECONDS if known.planned and place_of(stage) not in known.planned else 0.0
    seconds += NO_ROOM_SECONDS if stage.free_tokens < need.capacity else 0.0
    return seconds + AVOIDED_SECONDS * max(_blame_of(m.peer, need) for m in stage.members)


def _blame_of(peer: str, need: Need) -> int:
    """0 for a peer that may be asked; of others, one that has failed less often comes first."""
    return 1 + min(need.strikes.get(peer, 0), MOST_STRIKES) if peer in need.avoid else 0


def _walk_back(last: _Arrival) -> Iterator[StageAdvert]:
    at: _Arrival | None = last
    while at is not None:
        yield at.offer.stage
        at = at.before


def _ranges(layers: list[int]) -> str:
    """Layers as people count them: "1, 4-5"."""
    known = set(layers)
    starts = [layer for layer in layers if layer - 1 not in known]
    ends = [layer for layer in layers if layer + 1 not in known]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(f"{start}-{end}" if start < end else f"{start}" for start, end in pairs)
