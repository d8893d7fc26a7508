"""Peer scores: what a client saw of peers itself: how fast they are, and who failed it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

from client.routing.route import Place, Route, claimed_seconds, leader_of, load_factor, place_of
from swarm.errors import Deadline, PeerError, PeerLost, PeerMisbehaved, PeerRefused
from swarm.records import Advert, StageAdvert

Clock = Callable[[], float]

FIRST_COOLDOWN_SECONDS = 1.0  # of a peer that was late, together with others who may be to blame
LONGEST_COOLDOWN_SECONDS = 600.0
MOST_DOUBLINGS = 10
WEIGHTS: Mapping[type[PeerError], float] = {  # of a fault that is one peer's own, by what it was
    PeerLost: 2.0,
    Deadline: 5.0,
    PeerRefused: 5.0,
    PeerMisbehaved: 30.0,
}
REMEMBERED_SECONDS = 600.0  # speeds and strikes are forgotten after so long without another
MOST_PEERS = 4096
NEW_SHARE = 0.2  # of a new time in the moving average


class Cooldowns:
    """Peers that failed; each further time one is left alone for twice as long."""

    def __init__(
        self, clock: Clock, first_seconds: float, longest_seconds: float, *, free: int = 0
    ) -> None:
        self._clock = clock
        self._first_seconds, self._longest_seconds = first_seconds, longest_seconds
        self._free = free  # so many strikes of a peer cost it nothing
        self._strikes: Counter[str] = Counter()
        self._cooldown_until: dict[str, float] = {}

    def strike(self, peer: str, weight: float = 1.0, at_least: float = 0.0) -> None:
        """Leave a peer alone for a while that grows with its strikes."""
        self._forget()
        self._strikes[peer] += 1
        doublings = self._strikes[peer] - self._free - 1
        factor = 2.0 ** min(doublings, MOST_DOUBLINGS) if doublings >= 0 else 0.0
        cooldown = min(self._first_seconds * weight * factor, self._longest_seconds)
        self._cooldown_until[peer] = self._clock() + max(cooldown, at_least)

    def forgive(self, peers: Iterable[str]) -> None:
        """They did well: take one strike of each back."""
        for peer in peers:
            if self._strikes[peer] > 1:
                self._strikes[peer] -= 1
            else:
                del self._strikes[peer]
                self._cooldown_until.pop(peer, None)

    def seconds_left(self, peers: Iterable[str]) -> float:
        """How long to wait until each of these peers may be asked; 0 or less: now."""
        now = self._clock()
        return max((self._cooldown_until.get(peer, now) - now for peer in peers), default=0.0)

    @property
    def all(self) -> frozenset[str]:
        """Every peer with a strike."""
        return frozenset(self._cooldown_until)

    @property
    def strikes(self) -> Mapping[str, int]:
        """How many each of them has."""
        return dict(self._strikes)

    @property
    def cooling_down(self) -> frozenset[str]:
        """Those that are to be left alone now."""
        now = self._clock()
        return frozenset(peer for peer, until in self._cooldown_until.items() if until > now)

    def _forget(self) -> None:
        forgotten = self._clock() - REMEMBERED_SECONDS
        dropped = [peer for peer, until in self._cooldown_until.items() if until < forgotten]
        if not dropped and len(self._cooldown_until) >= MOST_PEERS:
            dropped = [next(iter(self._cooldown_until))]
        for peer in dropped:
            del self._cooldown_until[peer], self._strikes[peer]


@dataclass(slots=True)
class _Speed:
    step_seconds: float  # of one session alone
    seen_at: float


class PeerScores:
    """What all sessions of a client have seen; what peers say of themselves counts less."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._speeds: dict[Place, _Speed] = {}
        self.cooldowns = Cooldowns(clock, FIRST_COOLDOWN_SECONDS, LONGEST_COOLDOWN_SECONDS)

    def failed(self, suspects: Sequence[str], error: PeerError) -> None:
        """A session was failed: by one peer, or by one of several."""
        weight = WEIGHTS.get(type(error), 1.0) if len(suspects) == 1 else 1.0
        for peer in suspects:
            self.cooldowns.strike(peer, weight)

    def took(
        self, route: Route, hops: Sequence[Sequence[int]], seconds: float, own: Mapping[str, int]
    ) -> None:
        """A token came `seconds` after the one before, with what every hop says that it took.

        Time that nobody owns up to is shared by all: who hides his own slows his partners down, but
        over other routes these are seen to be quick.
        """
        told = [sum(hop[:2]) / 1e6 for hop in hops] + [0.0] * (len(route.stages) - len(hops))
        ways = sum(hop[2] for hop in hops) / 1e6
        hidden = max(seconds - sum(told) - ways, 0.0) / len(route.stages)
        for stage, said in zip(route.stages, told, strict=True):
            others = max(stage.sessions, own.get(leader_of(stage), 1) - 1)
            self._learn(place_of(stage), (min(said, seconds) + hidden) / load_factor(others))

    def step_seconds(self, stage: StageAdvert, usual: float) -> float:
        """What a step of this stage takes: as seen, else as it says, if the usual is no less."""
        speed = self._speeds.get(place_of(stage))
        if speed is not None and speed.seen_at > self._clock() - REMEMBERED_SECONDS:
            return speed.step_seconds
        return max(claimed_seconds(stage), usual * (stage.end - stage.start))

    def _learn(self, place: Place, seconds: float) -> None:
        known = self._speeds.pop(place, None)
        if known is not None:
            seconds = (1 - NEW_SHARE) * known.step_seconds + NEW_SHARE * seconds
        elif len(self._speeds) >= MOST_PEERS:
            del self._speeds[next(iter(self._speeds))]  # the one that was seen longest ago
        self._speeds[place] = _Speed(seconds, self._clock())


def usual_layer_seconds(adverts: Iterable[Advert], model: str) -> float:
    """The median of what peers say that one layer takes them: who claims less has to show it."""
    claims = [
        claimed_seconds(stage) / (stage.end - stage.start)
        for advert in adverts
        if advert.model == model
        for stage in advert.stages
    ]
    return median_low(claims) if claims else 0.0
