"""EligiblePeers: whom the planner plans with - who answers, makes sense, is calm, keeps its word.

Records say what a peer claims. A peer whose record changes again and again is left out until it
has been still for a while, so that it cannot keep the others unplanned; who does not serve its part
as planned (`promises.py`) is left out for a while, which doubles each time. After that it is on
trial: until it has served what it was given, no pipeline that serves is given up for it; nor for
who was restless lately. A peer that nobody can reach, for want of a relay, would break every
pipeline that it is a part of.
"""

import logging
import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from node.control.membership import Membership
from node.control.next_plan import reserves_of
from node.control.promises import Promises
from node.network.measuring_schedule import NEIGHBOURS
from swarm.hardware import Device, Links
from swarm.model_spec import ModelSpec
from swarm.plan import Plan, Stage
from swarm.records import Capability

logger = logging.getLogger(__name__)

RESTLESS_CHANGES = 4  # of one peer within RESTLESS_SECONDS
RESTLESS_SECONDS = 60.0
STILL_SECONDS = 5.0  # without a change, after which a restless peer gets what others leave idle
CALMED_SECONDS = 30.0  # and after which it counts like any other
OUT_SECONDS = 60.0  # for the peers of a stage that was not served as planned, the first time
OUT_CAP_SECONDS = 3600.0
UNREACHED_SECONDS = 30.0  # for a peer that serves to be reached again: a relay may be changing
# Beyond any device there is: who claims more is not believed.
BYTES_PER_SECOND_CAP = 5e13
FLOPS_CAP = 1e17
MEMORY_CAP = 2**46
WEIGHT_BYTES_LEAST = 0.25

Snapshot = dict[str, Capability]
Shape = tuple[tuple[int, float, str], ...]  # of every device: memory, bytes of a weight, dtype
Standing = tuple[Shape, bool, str]  # and whether it can be dialled, in which home


@dataclass(frozen=True, slots=True)
class Choice:
    """The peers to plan with, and those to plan with only if there is no plan without them."""

    able: Snapshot
    doubtful: Snapshot
    on_trial: frozenset[str] = frozenset()  # able, but they failed or were restless lately
    unreached: frozenset[str] = frozenset()  # neither: nobody can reach them
    causes: Mapping[str, str] = field(default_factory=dict)  # why the doubtful ones are
    reserves: tuple[Stage, ...] = ()  # stages that able peers serve beside the plan

    @property
    def proven(self) -> Snapshot:
        """Those who have not failed, or have served since, and were not restless lately."""
        return {peer: each for peer, each in self.able.items() if peer not in self.on_trial}

    @property
    def shapes(self) -> dict[str, Standing]:
        """What calls for another plan when it changes.

        Homes count only where somebody can be dialled from within his own alone.
        """
        is_open = all(c.reachable for c in self.able.values())
        homes = {peer: "" if is_open else c.home for peer, c in self.able.items()}
        return {p: (shape_of(c), c.reachable, homes[p]) for p, c in self.able.items()}

    @property
    def is_measured(self) -> bool:
        """Whether the ways between machines are known: of every peer as many as are measured."""
        links, peers_of = Links.of(self.able), Counter(c.host for c in self.able.values())

        def known_ways(peer: str) -> int:
            others = links.measured.get(peer, {})
            return sum(at in self.able and not links.is_one_host(peer, at) for at in others)

        return all(
            known_ways(peer) >= min(len(self.able) - peers_of[each.host], NEIGHBOURS)
            for peer, each in self.able.items()
        )


@dataclass(slots=True)
class Conduct:
    """How a peer has behaved while we looked; times are monotonic."""

    shape: Shape | None = None  # None: it was not there
    changes: deque[float] = field(default_factory=lambda: deque(maxlen=RESTLESS_CHANGES))
    failures: int = 0  # in a row: stages that were not served as planned
    out_until: float = -math.inf
    cause: str = ""  # of the last failure
    unreached_since: float | None = None

    def note(self, shape: Shape | None, now: float) -> None:
        """See what it claims now."""
        if shape != self.shape:
            self.shape = shape
            self.changes.append(now)

    def note_reach(self, *, is_reached: bool, now: float) -> None:
        """See whether others can reach it now."""
        if is_reached:
            self.unreached_since = None
        elif self.unreached_since is None:
            self.unreached_since = now

    def is_unreached(self, now: float, patience: float) -> bool:
        """Whether nobody has been able to reach it for so long."""
        return self.unreached_since is not None and now - self.unreached_since >= patience

    def is_restless(self, now: float, calm_seconds: float) -> bool:
        """Whether it has changed too often lately, and has not been calm for so long since."""
        if len(self.changes) < RESTLESS_CHANGES or now - self.changes[-1] >= calm_seconds:
            return False
        return self.changes[-1] - self.changes[0] < RESTLESS_SECONDS

    def is_forgettable(self, now: float) -> bool:
        """Whether nothing that it did matters any more."""
        last = self.changes[-1] if self.changes else -math.inf
        is_old = now - last > RESTLESS_SECONDS and now - self.out_until > OUT_CAP_SECONDS
        return self.shape is None and is_old


class EligiblePeers:
    """What the planner has seen of every peer while it planned."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._promises = Promises(spec)
        self._conduct: dict[str, Conduct] = {}

    def choose(self, membership: Membership, plan: Plan | None, now: float) -> Choice:
        """Whom to plan with at monotonic second `now`, given the plan in force."""
        self._note_promises(plan, membership, now)
        there = {p: c for p, c in membership.present.items() if not c.paused and makes_sense(c)}
        self._note_changes(there, now)
        unreached = self._unreached(there, plan, now)
        calm = {
            peer: capability
            for peer, capability in there.items()
            if peer not in unreached and not self._conduct[peer].is_restless(now, STILL_SECONDS)
        }
        able = {p: c for p, c in calm.items() if now >= self._conduct[p].out_until}
        on_trial = frozenset(peer for peer in able if self._is_on_trial(peer, now))
        doubtful = {p: c for p, c in calm.items() if p not in able}
        causes = {peer: self._conduct[peer].cause for peer in doubtful}
        reserves = reserves_of(self._spec, membership.adverts.values(), able, plan)
        return Choice(able, doubtful, on_trial, unreached, causes, reserves)

    def _is_on_trial(self, peer: str, now: float) -> bool:
        conduct = self._conduct[peer]
        return conduct.failures > 0 or conduct.is_restless(now, CALMED_SECONDS)

    def _unreached(self, there: Snapshot, plan: Plan | None, now: float) -> frozenset[str]:
        """Peers that nobody can reach; who has a part in the plan gets a while to mend that."""
        serving = {shard.peer for _, shard in plan.shards()} if plan else set()
        unreached = Links.of(there).unreached
        for peer in there:
            self._conduct[peer].note_reach(is_reached=peer not in unreached, now=now)
        patience = {peer: UNREACHED_SECONDS * (peer in serving) for peer in unreached}
        return frozenset(
            p for p, seconds in patience.items() if self._conduct[p].is_unreached(now, seconds)
        )

    def _note_changes(self, there: Snapshot, now: float) -> None:
        for peer in there.keys() | self._conduct.keys():
            conduct = self._conduct.setdefault(peer, Conduct())
            conduct.note(shape_of(there[peer]) if peer in there else None, now)
        self._conduct = {p: c for p, c in self._conduct.items() if not c.is_forgettable(now)}

    def _note_promises(self, plan: Plan | None, membership: Membership, now: float) -> None:
        """Leave out who breaks what the plan in force gave it, and forgive who keeps it."""
        adverts = membership.adverts
        for broken in self._promises.broken(plan, membership.present, adverts, now):
            for peer in broken.peers:
                self._put_out(peer, broken.cause, now)
        for peer in self._promises.keepers:
            conduct = self._conduct.setdefault(peer, Conduct())
            conduct.failures, conduct.cause = 0, ""

    def _put_out(self, peer: str, cause: str, now: float) -> None:
        conduct = self._conduct.setdefault(peer, Conduct())
        pause = min(OUT_SECONDS * 2.0**conduct.failures, OUT_CAP_SECONDS)
        conduct.out_until, conduct.cause = now + pause, cause
        conduct.failures = min(conduct.failures + 1, 16)
        logger.warning("peer %s is left out for %.0f s: %s", peer, pause, cause)


def shape_of(capability: Capability) -> Shape:
    """What calls for another plan when it changes."""
    return tuple((d.memory_bytes, d.weight_bytes, d.dtype) for d in capability.devices)


def makes_sense(capability: Capability) -> bool:
    """Whether the search can take a peer's record at its word."""
    indices = [device.index for device in capability.devices]
    return len(set(indices)) == len(indices) and all(map(_is_plausible, capability.devices))


def _is_plausible(device: Device) -> bool:
    return (
        device.bytes_per_second <= BYTES_PER_SECOND_CAP
        and device.flops <= FLOPS_CAP
        and device.memory_bytes <= MEMORY_CAP
        and device.weight_bytes >= WEIGHT_BYTES_LEAST
    )
