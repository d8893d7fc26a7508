"""Device and Link: what a peer offers and how far peers are apart, measured and declared."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

WIDEST = "f32"  # every device computes in it
WIDTHS = {WIDEST: 4, "bf16": 2, "f16": 2}  # bytes of a value, by dtype


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator of a peer, as measured on real layer shapes (slowdown included)."""

    index: int
    kind: str  # "cpu" or "cuda"
    name: str
    memory_bytes: int  # for weights and KV cache together
    bytes_per_second: float  # weight bytes streamed per second in decode
    flops: float  # FLOP/s in prefill
    weight_bytes: float = 4.0  # of one weight in a layer as this device holds it: less if quantised
    dtype: str = WIDEST  # what it computes in, if all devices of its stage do

    def __post_init__(self) -> None:
        if self.index < 0 or self.memory_bytes < 0:
            raise ValueError(f"device {self.name}: index and memory cannot be negative")
        speeds = (self.bytes_per_second, self.flops, self.weight_bytes)
        if not all(math.isfinite(speed) and speed > 0 for speed in speeds):
            raise ValueError(f"device {self.name}: speeds and weight_bytes must be positive")
        if self.dtype not in WIDTHS:
            raise ValueError(f"device {self.name}: dtype {self.dtype!r:.20} is not known")


DIRECT, PUNCHED, RELAYED = "direct", "punched", "relayed"  # how a peer is reached


@dataclass(frozen=True, slots=True)
class Link:
    """The way to one other peer: round trip and bandwidth as seen from here."""

    peer: str
    round_trip_seconds: float
    bytes_per_second: float
    kind: str = DIRECT  # or PUNCHED, RELAYED; what a later version calls otherwise is passed on

    def __post_init__(self) -> None:
        if not (self.round_trip_seconds >= 0 and self.bytes_per_second > 0):
            raise ValueError(f"link to {self.peer}: round trip and bandwidth must be positive")


@dataclass(frozen=True, slots=True)
class Way:
    """The way from one peer to another: seconds one way, bytes/s, and how they are connected."""

    seconds: float
    bytes_per_second: float
    kind: str = DIRECT

    @property
    def is_relayed(self) -> bool:
        """Whether what goes there passes a third peer."""
        return self.kind == RELAYED


# An exchange of 4 KB between two processes takes 20-35 us through blocking sockets or shared
# memory, which the members of a stage on one host use twice a layer; a hop between stages takes
# 0.2-0.3 ms through the daemons, but only once a token. So the figure is that of the members.
SAME_HOST = Way(50e-6, 2e9)
# HexGen (ICML 2024, section 5) counts 40-150 ms between regions, and a way through a relay takes
# about as long (42 ms where the direct one takes 21). The least of that: no way that was measured
# and is shorter loses against one of which nobody knows anything. 100 Mbit/s.
UNKNOWN = Way(40e-3, 12e6)
# Through a relay of which nobody knows anything: there and on again; its rate is shared by all
# whom it carries, and it ends a circuit after some minutes or bytes. 10 Mbit/s.
UNKNOWN_RELAYED = Way(2 * UNKNOWN.seconds, UNKNOWN.bytes_per_second / 10, RELAYED)
LEAST_SECONDS = SAME_HOST.seconds  # no two processes are nearer: a claim of less is taken as this


def assumed_relayed(peer: str) -> Link:
    """What is said of a link through a relay that nobody could measure: no probe may pass it."""
    seconds, bytes_per_second = 2 * UNKNOWN_RELAYED.seconds, UNKNOWN_RELAYED.bytes_per_second
    return Link(peer, seconds, bytes_per_second, RELAYED)


def unmeasured_way(*, is_one_host: bool, is_relayed: bool = False) -> Way:
    """The way between two peers where nobody measured it."""
    if is_one_host:
        return SAME_HOST
    return UNKNOWN_RELAYED if is_relayed else UNKNOWN


class Located(Protocol):
    """What tells of a peer's ways: its capability record."""

    @property
    def links(self) -> Sequence[Link]:
        """The ways that it measured."""

    @property
    def host(self) -> str:
        """Equal for peers of one machine."""

    @property
    def reachable(self) -> bool:
        """Whether others have dialled it."""

    @property
    def relays(self) -> Sequence[str]:
        """Where it can be reached through others."""

    @property
    def home(self) -> str:
        """Equal for peers behind one router."""


@dataclass(frozen=True, slots=True)
class Links:
    """The one rule of planner, client and node, so that a plan and routes through it agree."""

    measured: Mapping[str, Mapping[str, Way]]  # from, to
    hosts: Mapping[str, str]
    homes: Mapping[str, str] = field(default_factory=dict)
    undialled: frozenset[str] = frozenset()  # peers that only their own home can dial
    unreached: frozenset[str] = frozenset()  # of these, who cannot be reached through others either

    @classmethod
    def of(cls, capabilities: Mapping[str, Located]) -> "Links":
        """The ways that peers measured: what the receiver says of a way, else what the sender says.

        A peer measures how fast bytes come in (`node/network/link_probe.py`), so the
        receiver knows better.
        """
        measured: dict[str, dict[str, Way]] = {}
        for receiver, capability in capabilities.items():
            for link in capability.links:
                seconds = max(link.round_trip_seconds / 2, LEAST_SECONDS)
                way = Way(seconds, link.bytes_per_second, link.kind)
                measured.setdefault(link.peer, {})[receiver] = way
        for sender, ways in list(measured.items()):
            for receiver, way in list(ways.items()):
                measured.setdefault(receiver, {}).setdefault(sender, way)
        hosts = {peer: each.host for peer, each in capabilities.items()}
        homes = {peer: each.home for peer, each in capabilities.items() if each.home}
        undialled = frozenset(p for p, each in capabilities.items() if not each.reachable)
        links = cls(measured, hosts, homes, undialled)
        return replace(links, unreached=links._unreached(capabilities))

    def _unreached(self, capabilities: Mapping[str, Located]) -> frozenset[str]:
        """Peers without a relay that nobody has dialled, nor measured from inside their home.

        Who measured one from outside did so over a connection that it had opened itself: that helps
        nobody else. Of a peer that is alone nothing is known: nobody is there to dial it.
        """
        if len(capabilities) < 2:
            return frozenset()
        met = {
            link.peer
            for peer, each in capabilities.items()
            for link in each.links
            if link.peer != peer and self.is_one_home(peer, link.peer)
        }
        lonely = (peer for peer in self.undialled if not capabilities[peer].relays)
        return frozenset(peer for peer in lonely if peer not in met)

    def is_one_host(self, one: str, other: str) -> bool:
        """Whether both peers are known to share a machine."""
        return one in self.hosts and self.hosts[one] == self.hosts.get(other)

    def is_one_home(self, one: str, other: str) -> bool:
        """Whether both peers are known to share a machine, or the network behind a router."""
        is_behind_one = one in self.homes and self.homes[one] == self.homes.get(other)
        return is_behind_one or self.is_one_host(one, other)

    def can_dial(self, one: str, other: str) -> bool:
        """Whether each of two peers can open a socket to the other."""
        are_open = self.undialled.isdisjoint((one, other))
        return are_open or self.is_one_home(one, other)

    def way(self, sender: str, receiver: str) -> Way:
        """From one peer to another; between two that only their homes can dial, through a relay."""
        known = self.measured.get(sender, {}).get(receiver)
        if known:
            return known
        is_relayed = self.undialled.issuperset((sender, receiver))
        return unmeasured_way(
            is_one_host=self.is_one_host(sender, receiver),
            is_relayed=is_relayed and not self.is_one_home(sender, receiver),
        )


def common_dtype(dtypes: Iterable[str]) -> str:
    """What the devices of one stage compute in: their own dtype if all have one, else f32."""
    known = set(dtypes)
    return known.pop() if len(known) == 1 else WIDEST


_ZEROS = (("K", 3), ("M", 6), ("G", 9), ("T", 12))
_UNITS = {"B": 1}
_UNITS |= {f"{letter}{end}": 10**zeros for letter, zeros in _ZEROS for end in ("", "B")}
_UNITS |= {f"{letter}IB": 2 ** (10 * zeros // 3) for letter, zeros in _ZEROS}


def bytes_of(text: str) -> int:
    """Read a size such as "2GB", "8G", "512MiB" or "1.5 MB" as bytes; raises ValueError."""
    number = text.strip().rstrip("BbKkMmGgTtIi ")
    unit = text.strip()[len(number) :].strip().upper()
    if number and not unit:
        raise ValueError(f"{text!r} lacks a unit: gigabytes are {number}GB")
    try:
        size = float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is not a size") from None
    if not (math.isfinite(size) and size > 0):
        raise ValueError(f"{text!r} is not a size above zero")
    return int(size)
