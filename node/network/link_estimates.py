"""LinkEstimates: what is known of the links to peers, and what of it is worth telling; no I/O.

A figure comes from measurements, of which the middle one counts, so that one bad one decides
nothing; large frames and round trips of later work correct it. Others hear of a change only when it
is large: a plan does not depend on noise.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from statistics import median_high

from node.network.link_probe import LinkMeasurement
from swarm.hardware import Link

KEPT = 3  # measurements of a link
SMOOTHING = 0.2  # weight of a frame, or of a round trip
SLOW_BYTES_PER_SECOND = 8e6  # below it a single measurement is not believed
AGREEING = 1.3  # by which factor two measurements differ at most
WORTH_TELLING = 1.25  # a factor
NOISE_SECONDS = 0.002  # of a round trip


@dataclass(slots=True)
class Estimate:
    """What is known of one link; zero where nothing is."""

    round_trip_seconds: float = 0.0
    bytes_per_second: float = 0.0
    measured: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))  # the last rates
    measured_at: float = -math.inf

    @property
    def is_confirmed(self) -> bool:
        """Whether a measurement is fast, or another one agrees with it, or there are several."""
        rates = self.measured
        if len(rates) in {0, KEPT} or max(rates) >= SLOW_BYTES_PER_SECOND:
            return bool(rates)
        return len(rates) > 1 and max(rates) / min(rates) <= AGREEING

    def link(self, peer: str) -> Link | None:
        """As others hear of it, once all of it is known."""
        if not (self.round_trip_seconds and self.bytes_per_second):
            return None
        return Link(peer, self.round_trip_seconds, self.bytes_per_second)


class LinkEstimates:
    """The estimate for every peer that was measured or has sent something large."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._estimates: dict[str, Estimate] = {}
        self._told: dict[str, Link] = {}

    def of(self, peer: str) -> Estimate:
        """What is known of the link to a peer."""
        return self._estimates.get(peer, Estimate())

    def note_measurement(self, peer: str, found: LinkMeasurement) -> None:
        """A link was measured: of two rates the higher counts, of three the middle one."""
        estimate = self._of(peer)
        estimate.measured.append(found.bytes_per_second)
        estimate.bytes_per_second = median_high(estimate.measured)
        estimate.round_trip_seconds = found.round_trip_seconds
        estimate.measured_at = self._now()

    def note_frame(self, peer: str, bytes_per_second: float) -> None:
        """A large frame of a peer came in as fast as this."""
        estimate = self._of(peer)
        estimate.bytes_per_second = _smoothed(estimate.bytes_per_second, bytes_per_second)

    def note_share(self, peer: str, bytes_per_second: float) -> None:
        """A transfer beside others was as fast as this: the link carries at least so much."""
        if bytes_per_second > self.of(peer).bytes_per_second:
            self.note_frame(peer, bytes_per_second)

    def note_round_trip(self, peer: str, seconds: float) -> None:
        """A heartbeat came back after so long."""
        estimate = self._of(peer)
        estimate.round_trip_seconds = _smoothed(estimate.round_trip_seconds, seconds)

    def keep_only(self, peers: Collection[str]) -> None:
        """Forget the peers that are not there any more."""
        self._estimates = {p: each for p, each in self._estimates.items() if p in peers}
        self._told = {p: each for p, each in self._told.items() if p in peers}

    def links(self) -> list[Link]:
        """The links to tell of: as told before, but for those that have changed by much."""
        for peer, estimate in self._estimates.items():
            link = estimate.link(peer)
            if link and (peer not in self._told or _is_news(self._told[peer], link)):
                self._told[peer] = link
        return sorted(self._told.values(), key=lambda link: link.peer)

    def _of(self, peer: str) -> Estimate:
        return self._estimates.setdefault(peer, Estimate())


def _smoothed(before: float, value: float) -> float:
    return before + SMOOTHING * (value - before) if before else value


def _is_news(told: Link, link: Link) -> bool:
    rates = sorted((told.bytes_per_second, link.bytes_per_second))
    trips = sorted((told.round_trip_seconds, link.round_trip_seconds))
    is_far_off = trips[1] > WORTH_TELLING * trips[0] and trips[1] - trips[0] > NOISE_SECONDS
    return rates[1] > WORTH_TELLING * rates[0] or is_far_off
