"""Roofline: seconds of a pass and of an all-reduce, bytes of a row - every formula once.

A device passes a layer in the longer of two times, that of reading bytes and that of arithmetic
(Williams et al., "Roofline", 2009); a stage waits for its slowest member and then sums partial
results. HexGen (ICML 2024, section 3) adds the two times and knows no grouped queries, embedding or
head: its own formulas, for the reproduction, are in `hexgen/paper_cost.py`. Figures may be arrays.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.problem import Numbers, PlanDevice, PlanModel, Problem, Workload
from swarm.hardware import WIDTHS, common_dtype

Figures = Numbers | float
TOKEN_BYTES = 4.0  # of a sampled token's id on its way back to the first stage: int32
UNNAMED_WIDTH = 2  # bytes of a value where no dtype is named: cluster files are of 16-bit models
ALLREDUCES = 2  # of a tensor-parallel layer: behind attention and behind MLP (Megatron-LM)


@dataclass(frozen=True, eq=False, slots=True)
class Speeds:
    """What a device, or devices together, reach: bytes/s read and FLOP/s."""

    bytes_per_second: Figures
    flops: Figures

    @property
    def of_leader(self) -> "Speeds":
        """Those of the first of several devices."""
        reading, computing = np.asarray(self.bytes_per_second), np.asarray(self.flops)
        return Speeds(reading[0], computing[0])

    @classmethod
    def joined(cls, speeds: Sequence["Speeds"]) -> "Speeds":
        """Arrays of them as one, along the first axis."""
        return cls(
            np.concatenate([each.bytes_per_second for each in speeds]),
            np.concatenate([each.flops for each in speeds]),
        )


def speeds_of(device: PlanDevice) -> Speeds:
    """The effective speeds of a device: its nominal ones times the efficiency reached of them."""
    return Speeds(
        device.memory_efficiency * device.bytes_per_second,
        device.compute_efficiency * device.flops,
    )


def speeds_of_all(devices: Iterable[PlanDevice]) -> Speeds:
    """The effective speeds of many devices: columns [devices, 1]."""
    speeds = [speeds_of(device) for device in devices]
    return Speeds(
        np.array([[each.bytes_per_second] for each in speeds], dtype=float),
        np.array([[each.flops] for each in speeds], dtype=float),
    )


# ---- a pass through a layer


@dataclass(frozen=True, eq=False, slots=True)
class Pass:
    """One pass through a layer: tokens computed, cached tokens read, pairs in a prompt."""

    tokens: Figures
    kv_tokens: Figures = 0.0
    pairs: float = 0.0  # of prompt tokens that attend to each other


def decode_pass(load: Workload, batch: Figures) -> Pass:
    """A token of each of `batch` sequences, with as much context as they have on average."""
    return Pass(batch, batch * load.mean_context)


def prefill_pass(load: Workload) -> Pass:
    """The whole prompt of one request."""
    return Pass(load.input_tokens, load.input_tokens, load.input_tokens**2)


@dataclass(frozen=True, eq=False, slots=True)
class Work:
    """What a pass asks of a device."""

    read_bytes: Figures
    flop: Figures

    def parts(self, speeds: Speeds) -> tuple[Any, Any]:
        """Seconds by reading and by arithmetic."""
        return self.read_bytes / speeds.bytes_per_second, self.flop / speeds.flops

    def seconds(self, speeds: Speeds) -> Any:
        """Seconds of a device that reads and computes at once: the roofline."""
        return np.maximum(*self.parts(speeds))


@dataclass(frozen=True, eq=False, slots=True)
class LayerPart:
    """A layer, or what a shard or a unit of it holds: figures, or arrays of them."""

    parameters: Figures
    weight_bytes: Figures
    kv_bytes: Figures  # of one cached token
    pair_flop: Figures  # attention's work for a pair of prompt tokens

    @classmethod
    def joined(cls, parts: Sequence["LayerPart"]) -> "LayerPart":
        """Arrays of them as one, along the first axis; as a decode pass needs it."""
        return cls(
            np.concatenate([part.parameters for part in parts]),
            np.concatenate([part.weight_bytes for part in parts]),
            np.concatenate([part.kv_bytes for part in parts]),
            np.nan,  # no pass of a prompt
        )

    def work(self, one: Pass) -> Work:
        """Every weight is read once and multiplied and added once for each token."""
        flop = one.tokens * (2 * self.parameters)
        if one.pairs:
            flop = flop + one.pairs * self.pair_flop
        return Work(self.weight_bytes + one.kv_tokens * self.kv_bytes, flop)


def layer_part(model: PlanModel, kv_share: Figures = 1.0, mlp_share: Figures = 1.0) -> LayerPart:
    """The part of a layer with such shares of its KV heads (and their queries) and its MLP."""
    parameters = model.attention_parameters * kv_share + model.mlp_parameters * mlp_share
    return LayerPart(
        parameters,
        parameters * model.bytes_per_weight,
        model.kv_bytes * kv_share,
        2.0 * model.hidden * kv_share,
    )


def head_part(model: PlanModel) -> LayerPart:
    """The head, as a layer that caches nothing; a pass through it is of sampled rows alone."""
    return LayerPart(model.embedding_parameters, model.end_bytes, 0.0, 0.0)


# ---- what travels


def row_bytes(model: PlanModel, dtype: str) -> float:
    """Bytes of one token's activations as a stage of that dtype sends them.

    They travel in the dtype of the sending stage, to the next stage and between its own members
    (`swarm/wire/tensor_codec.py`); a receiver of another dtype casts them. Rows that a slow link
    narrows to int8 are not foreseen: that is decided when a session opens.
    """
    return float(model.hidden * (WIDTHS[dtype] if dtype else UNNAMED_WIDTH))


def stage_row_bytes(problem: Problem, members: Iterable[int]) -> float:
    """Bytes of a row as the stage of these devices sends it."""
    return row_bytes(problem.model, common_dtype(problem.devices[m].dtype for m in members))


def least_row_bytes(problem: Problem) -> float:
    """Bytes of the smallest row that any stage may send: what bounds count."""
    return min(row_bytes(problem.model, d) for d in {each.dtype for each in problem.devices})


def allreduce_seconds(size: Figures, members: Figures, link: tuple[Figures, Figures]) -> Any:
    """Seconds of one all-reduce of `size` bytes over the worst link: latency and bytes/s.

    Ours: the better of a ring (reduce-scatter and all-gather, which HexGen's section 3 counts) and
    of everybody sending everything to all at once, as our sockets do. Nothing for one member.
    """
    latency, bandwidth = link
    ring = 2 * (members - 1) * (latency + size / (members * bandwidth))
    return np.minimum(ring, latency + (members - 1) * size / bandwidth)


def layer_allreduce_seconds(size: Figures, members: Figures, link: tuple[Figures, Figures]) -> Any:
    """Seconds of all that a tensor-parallel layer sums in one pass."""
    return ALLREDUCES * allreduce_seconds(size, members, link)


def worst_link(problem: Problem, members: Sequence[int]) -> tuple[float, float]:
    """Highest latency and lowest bandwidth between any two of the members."""
    if len(members) == 1:
        return 0.0, np.inf
    machines = problem.machine_of[list(members)]
    apart = ~np.eye(len(members), dtype=bool)
    grid = np.ix_(machines, machines)
    return float(problem.latency[grid][apart].max()), float(problem.bandwidth[grid][apart].min())
