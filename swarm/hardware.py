"""Device and Link: what a peer offers and how far peers are apart, measured and declared."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Link:
    """The way to one other peer: round trip and bandwidth as seen from here."""

    peer: str
    round_trip_seconds: float
    bytes_per_second: float

    def __post_init__(self) -> None:
        if not (self.round_trip_seconds >= 0 and self.bytes_per_second > 0):
            raise ValueError(f"link to {self.peer}: round trip and bandwidth must be positive")


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
