"""Device and Link: what a peer offers and how far peers are apart, measured and declared."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    """The way from one peer to another: seconds one way, and bytes/s."""

    seconds: float
    bytes_per_second: float


# An exchange of 4 KB between two processes takes 20-35 us through blocking sockets or shared
# memory, which the members of a stage on one host use twice a layer; a hop between stages takes
# 0.2-0.3 ms through the daemons, but only once a token. So the figure is that of the members.
SAME_HOST = Way(50e-6, 2e9)
# HexGen (ICML 2024, section 5) counts 40-150 ms between regions, and a way through a relay takes
# about as long (42 ms where the direct one takes 21). The least of that: no way that was measured
# and is shorter loses against one of which nobody knows anything. 100 Mbit/s.
UNKNOWN = Way(40e-3, 12e6)
LEAST_SECONDS = SAME_HOST.seconds  # no two processes are nearer: a claim of less is taken as this


def unmeasured_way(*, is_one_host: bool) -> Way:
    """The way between two peers where nobody measured it."""
    return SAME_HOST if is_one_host else UNKNOWN


class Located(Protocol):
    """What tells of a peer's ways: its capability record."""

    @property
    def links(self) -> Sequence[Link]:
        """The ways that it measured."""

    @property
    def host(self) -> str:
        """Equal for peers of one machine."""


@dataclass(frozen=True, slots=True)
class Links:
    """The one rule of planner, client and node, so that a plan and routes through it agree."""

    measured: Mapping[str, Mapping[str, Way]]  # from, to
    hosts: Mapping[str, str]

    @classmethod
    def of(cls, capabilities: Mapping[str, Located]) -> "Links":
        """The ways that peers measured: what the receiver says of a way, else what the sender says.

        A peer measures how fast bytes come in (`node/probe.py`), so the receiver knows better.
        """
        measured: dict[str, dict[str, Way]] = {}
        for receiver, capability in capabilities.items():
            for link in capability.links:
                seconds = max(link.round_trip_seconds / 2, LEAST_SECONDS)
                way = Way(seconds, link.bytes_per_second)
                measured.setdefault(link.peer, {})[receiver] = way
        for sender, ways in list(measured.items()):
            for receiver, way in list(ways.items()):
                measured.setdefault(receiver, {}).setdefault(sender, way)
        return cls(measured, {peer: each.host for peer, each in capabilities.items()})

    def is_one_host(self, one: str, other: str) -> bool:
        """Whether both peers are known to share a machine."""
        return one in self.hosts and self.hosts[one] == self.hosts.get(other)

    def way(self, sender: str, receiver: str) -> Way:
        """From one peer to another."""
        known = self.measured.get(sender, {}).get(receiver)
        return known or unmeasured_way(is_one_host=self.is_one_host(sender, receiver))


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
