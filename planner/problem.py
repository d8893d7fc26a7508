"""Problem: what the planner is told - model, devices, links, workload and objective."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from swarm.hardware import WIDTHS
from swarm.model_spec import ModelSpec

Numbers = NDArray[np.float64]
LinkRule = Callable[["PlanDevice", "PlanDevice"], tuple[float, float]]
OBJECTIVES = ("latency", "throughput", "slo")


@dataclass(frozen=True, slots=True)
class PlanModel:
    """Dimensions of a model as the cost formulas use them; parameters are of one layer.

    `embedding_everywhere` is the live node's rule for the ends: every rank of the first stage
    holds the embedding. Otherwise (the oracle's rule) only the leader does. The head is held and
    computed by the leader of the last stage in both. With `shared_ends` the members of a stage
    divide them evenly: where they fit nowhere whole.
    """

    name: str
    layers: int
    hidden: int
    kv_heads: int
    mlp_blocks: int
    attention_parameters: float
    mlp_parameters: float
    embedding_parameters: float  # vocab x hidden
    bytes_per_weight: float
    kv_bytes: float  # of one token in one layer, all heads
    end_bytes_per_weight: float = 2.0  # of embedding and head
    embedding_everywhere: bool = False
    shared_ends: bool = False
    least_units: int = 0  # KV heads, and MLP blocks, that every shard must hold

    def __post_init__(self) -> None:
        counts = (self.layers, self.hidden, self.kv_heads, self.mlp_blocks)
        sizes = (self.attention_parameters, self.mlp_parameters, self.bytes_per_weight)
        if min(counts) < 1 or min(sizes) <= 0 or self.kv_bytes <= 0:
            raise ValueError(f"model {self.name}: every dimension must be above zero")

    @classmethod
    def of_spec(
        cls, spec: ModelSpec, *, bytes_per_weight: float, bytes_per_value: int
    ) -> "PlanModel":
        """The live model: ends in the weights' own type, the embedding on every first rank."""
        return cls(
            name=spec.name,
            layers=spec.layers,
            hidden=spec.hidden,
            kv_heads=spec.kv_heads,
            mlp_blocks=spec.mlp_blocks,
            attention_parameters=spec.attention_parameters,
            mlp_parameters=spec.mlp_parameters,
            embedding_parameters=spec.embedding_parameters,
            bytes_per_weight=bytes_per_weight,
            kv_bytes=spec.kv_bytes(spec.kv_heads, bytes_per_value),
            end_bytes_per_weight=bytes_per_weight,
            embedding_everywhere=True,
            least_units=1,
        )

    @property
    def layer_parameters(self) -> float:
        """Parameters of one layer."""
        return self.attention_parameters + self.mlp_parameters

    @property
    def layer_bytes(self) -> float:
        """Weight bytes of one layer."""
        return self.layer_parameters * self.bytes_per_weight

    @property
    def end_bytes(self) -> float:
        """Bytes of the embedding, and of the head."""
        return self.embedding_parameters * self.end_bytes_per_weight


@dataclass(frozen=True, slots=True)
class PlanDevice:
    """One device: nominal speeds, the efficiency reached of them, and usable memory in bytes."""

    id: str  # "<machine>/<index>"
    machine: str
    flops: float
    bytes_per_second: float
    memory_bytes: float
    compute_efficiency: float = 1.0  # 1.0 where the speed was measured
    memory_efficiency: float = 1.0
    kind: str = ""
    region: str = ""
    lifetime_seconds: float = math.inf  # expected stay in the swarm
    load_bytes_per_second: float = 1e8  # how fast it fetches weights
    dtype: str = ""  # devices of unlike ones share no stage; none named: 16 bits a value
    home: str = ""  # the network that it stands in, where that matters
    is_dialled: bool = True  # by any other; if not, then by those of its own home only

    def __post_init__(self) -> None:
        speeds = (self.flops, self.bytes_per_second, self.load_bytes_per_second)
        if not all(math.isfinite(speed) and speed > 0 for speed in speeds):
            raise ValueError(f"device {self.id}: speeds must be positive numbers")
        if not self.memory_bytes >= 0:
            raise ValueError(f"device {self.id}: memory_bytes cannot be negative")
        if self.dtype and self.dtype not in WIDTHS:
            raise ValueError(f"device {self.id}: dtype {self.dtype!r:.20} is not known")


@dataclass(frozen=True, slots=True)
class Workload:
    """The request that stands for all: tokens in and out; rate and deadline for `slo`."""

    input_tokens: float
    output_tokens: float
    requests_per_second: float = 0.0
    deadline_seconds: float = math.inf

    def __post_init__(self) -> None:
        if min(self.input_tokens, self.output_tokens) < 1:
            raise ValueError("workload: input_tokens and output_tokens are at least 1")

    @property
    def context(self) -> float:
        """Tokens of one whole session: the KV room it needs."""
        return self.input_tokens + self.output_tokens

    @property
    def mean_context(self) -> float:
        """Cached tokens that a decode step reads on average."""
        return self.input_tokens + self.output_tokens / 2


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything a plan depends on.

    `latency` and `bandwidth` are machine by machine (one way, seconds and bytes per second), in
    order of `machines`; the diagonal is the link between devices of one machine.
    """

    model: PlanModel
    devices: tuple[PlanDevice, ...]
    latency: Numbers
    bandwidth: Numbers
    workload: Workload
    objective: str = "latency"

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective {self.objective!r} is none of {', '.join(OBJECTIVES)}")
        if len({device.id for device in self.devices}) != len(self.devices):
            raise ValueError("two devices have the same id")
        shape = (len(self.machines), len(self.machines))
        if self.latency.shape != shape or self.bandwidth.shape != shape:
            raise ValueError("latency and bandwidth must be square, one row for each machine")
        if not (np.all(self.latency >= 0) and np.all(self.bandwidth > 0)):
            raise ValueError("links need a latency of at least 0 and a bandwidth above 0")

    @cached_property
    def machines(self) -> tuple[str, ...]:
        """Machine names in order of first appearance."""
        return tuple(dict.fromkeys(device.machine for device in self.devices))

    @cached_property
    def machine_of(self) -> NDArray[np.int64]:
        """The machine's number for every device."""
        number = {name: i for i, name in enumerate(self.machines)}
        return np.array([number[device.machine] for device in self.devices], dtype=np.int64)

    @cached_property
    def devices_in(self) -> NDArray[np.int64]:
        """How many devices every machine has."""
        return np.bincount(self.machine_of, minlength=len(self.machines))

    @cached_property
    def index_of(self) -> dict[str, int]:
        """The place of every device id in `devices`."""
        return {device.id: i for i, device in enumerate(self.devices)}

    def keeps_apart(self, members: Iterable[int]) -> bool:
        """Whether devices cannot share a stage: unlike dtypes, or one that not all can dial."""
        devices = [self.devices[member] for member in members]
        is_shut = not all(device.is_dialled for device in devices)
        is_spread = len({device.home for device in devices}) > 1
        return len({device.dtype for device in devices}) > 1 or (is_shut and is_spread)

    def link(self, a: int, b: int) -> tuple[float, float]:
        """One-way latency (seconds) and bandwidth (bytes/s) from device `a` to device `b`."""
        row, column = self.machine_of[a], self.machine_of[b]
        return float(self.latency[row, column]), float(self.bandwidth[row, column])


def link_tables(devices: tuple[PlanDevice, ...], rule: LinkRule) -> tuple[Numbers, Numbers]:
    """Latency and bandwidth between machines, asking `rule` once for each pair of machines."""
    first = {device.machine: device for device in reversed(devices)}
    speakers = [first[name] for name in dict.fromkeys(device.machine for device in devices)]
    pairs = [[rule(a, b) for b in speakers] for a in speakers]
    shape = (len(speakers), len(speakers))
    latency = np.array([[pair[0] for pair in row] for row in pairs], dtype=float).reshape(shape)
    bandwidth = np.array([[pair[1] for pair in row] for row in pairs], dtype=float).reshape(shape)
    return latency, bandwidth
