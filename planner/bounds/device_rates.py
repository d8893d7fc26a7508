"""Device rates: what one kind of device could do at best in any pipeline; the ground of the bounds.

Arrays run over a grid of sequences held (n) and of batch in one pass (b), each cell a range: what
helps is select at the range's better end, so that every figure is a true bound.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from planner.cost.cost_model import BATCH_CAP
from planner.cost.roofline import (
    Figures,
    LayerPart,
    Speeds,
    decode_pass,
    layer_allreduce_seconds,
    layer_part,
    least_row_bytes,
    prefill_pass,
)
from planner.device_classes import DeviceType
from planner.problem import Numbers, PlanDevice, Problem

MOST_KINDS = 48  # beyond that, speeds and memory are rounded up
ROUNDING = 1.1
LARGEST_GROUP = 16  # larger tensor-parallel groups are taken to cost only their all-reduce
STEPS = 48
NEVER = 1e30  # seconds; finite, so that nothing times it is defined


@dataclass(frozen=True, slots=True)
class Kind:
    """Devices of one type and alike in best links: inside the machine and to another one."""

    device: DeviceType
    inside: tuple[float, float, int]  # latency, bandwidth, devices in the machine
    outside: tuple[float, float]

    @property
    def speeds(self) -> Speeds:
        """What such a device reaches."""
        return self.device.speeds

    @property
    def memory(self) -> float:
        """Bytes of such a device."""
        return self.device.memory_bytes


def kinds_of(problem: Problem) -> Counter[Kind]:
    """Kinds of devices and how many there are of each; rounded up if there are too many."""
    exact = Counter(kind_of(problem, i, d) for i, d in enumerate(problem.devices))
    if len(exact) <= MOST_KINDS:
        return exact
    best, rounded = _best_links(exact), Counter[Kind]()
    for kind, count in exact.items():
        rounded[_rounded(kind, best)] += count
    return rounded


def kind_of(problem: Problem, number: int, device: PlanDevice) -> Kind:
    machine = int(problem.machine_of[number])
    count = int(problem.devices_in[machine])
    latency, bandwidth = problem.latency, problem.bandwidth
    others = np.arange(len(problem.machines)) != machine
    outside = (NEVER, 1.0)
    if others.any():
        near = np.minimum(latency[machine], latency[:, machine])[others].min()
        wide = np.maximum(bandwidth[machine], bandwidth[:, machine])[others].max()
        outside = (float(near), float(wide))
    own = (float(latency[machine, machine]), float(bandwidth[machine, machine]), count)
    return Kind(
        DeviceType.of(device),
        own if count > 1 else (NEVER, 1.0, 1),
        outside,
    )


def _best_links(kinds: Counter[Kind]) -> tuple[tuple[float, float, int], tuple[float, float]]:
    inside = [kind.inside for kind in kinds]
    outside = [kind.outside for kind in kinds]
    return (
        (min(x[0] for x in inside), max(x[1] for x in inside), max(x[2] for x in inside)),
        (min(x[0] for x in outside), max(x[1] for x in outside)),
    )


def _rounded(kind: Kind, best: tuple[tuple[float, float, int], tuple[float, float]]) -> Kind:
    def up(value: float) -> float:
        return float(ROUNDING ** np.ceil(np.log(value) / np.log(ROUNDING)))

    device = kind.device
    rounded = DeviceType(
        up(device.bytes_per_second),
        up(device.flops),
        up(max(device.memory_bytes, 1.0)),
        device.dtype,
    )
    return Kind(rounded, *best)


@dataclass(frozen=True, eq=False)
class DeviceRates:
    """Bounds of all kinds [kind, n, b]; n: ranges of sequences held, b: of batch in one pass.

    Seconds per layer are for one token (at the range's largest batch) or one pass (at its least).
    """

    counts: Numbers  # devices of each kind
    low: Numbers
    high: Numbers
    token_alone: Numbers  # one whole layer on one device
    pass_alone: Numbers
    layers_alone: Numbers  # most layers by memory
    token_parts: tuple[
        tuple[Numbers, Numbers], ...
    ]  # attention, MLP: decode and prefill each by reading or arithmetic
    token_allreduce: Numbers  # all-reduces of a tensor-parallel layer
    pass_grouped: Numbers  # one layer of the best group the kind could be in
    memory: Numbers
    bytes_parts: tuple[Numbers, float]  # attention with its KV [1, n, 1], MLP


def device_rates_of(problem: Problem) -> DeviceRates:
    """Work out the bounds of all kinds of devices of a problem."""
    kinds = kinds_of(problem)
    edges = np.geomspace(1, BATCH_CAP, STEPS + 1)
    model, load = problem.model, problem.workload
    low, high = edges[:-1], edges[1:]
    whole = _phases(problem, kinds, layer_part(model), high)
    attention = _phases(problem, kinds, layer_part(model, 1.0, 0.0), high)
    mlp = _phases(problem, kinds, layer_part(model, 0.0, 1.0), high)
    cache = model.kv_bytes * load.context * low[None, :, None]
    memory = np.array([kind.memory for kind in kinds])[:, None, None]
    allreduce = np.array([_allreduce_seconds(problem, kind, high, 2) for kind in kinds])[:, None, :]
    return DeviceRates(
        counts=np.array(list(kinds.values()), dtype=float),
        low=low,
        high=high,
        token_alone=(np.maximum(*whole[0]) + np.maximum(*whole[1])) / high,
        pass_alone=_alone(problem, kinds, low),
        layers_alone=np.floor(memory / (model.layer_bytes + cache) + 1e-9),
        token_parts=tuple(
            ((attention[0][i] + attention[1][j]) / high, (mlp[0][i] + mlp[1][j]) / high)
            for i in (0, 1)
            for j in (0, 1)
        ),
        token_allreduce=allreduce / high,
        pass_grouped=_grouped(problem, kinds, low),
        memory=memory,
        bytes_parts=(
            model.attention_parameters * model.bytes_per_weight + cache,
            model.mlp_parameters * model.bytes_per_weight,
        ),
    )


Phases = tuple[tuple[Numbers, Numbers], tuple[Numbers, Numbers]]


def _phases(problem: Problem, kinds: Counter[Kind], part: LayerPart, batch: Numbers) -> Phases:
    """Seconds of a pass over a layer's part: (decode, prefill), each by reading and arithmetic."""
    load = problem.workload
    speeds = Speeds(
        np.array([kind.device.bytes_per_second for kind in kinds])[:, None, None],
        np.array([kind.device.flops for kind in kinds])[:, None, None],
    )
    prompts = batch / load.output_tokens
    reading, arithmetic = part.work(prefill_pass(load)).parts(speeds)
    decode = part.work(decode_pass(load, batch)).parts(speeds)
    return decode, (reading * prompts, arithmetic * prompts)


def _alone(problem: Problem, kinds: Counter[Kind], batch: Numbers) -> Numbers:
    decode, prefill = _phases(problem, kinds, layer_part(problem.model), batch)
    seconds: Numbers = np.maximum(*decode) + np.maximum(*prefill)
    return seconds


def _allreduce_seconds(problem: Problem, kind: Kind, batch: Numbers, members: int) -> Numbers:
    """Seconds of a layer's all-reduces over the kind's best links, for so many members."""
    fits = members <= kind.inside[2]
    links = [kind.inside[:2], kind.outside] if fits else [kind.outside]
    ways = [least_allreduce_seconds(problem, batch, members, link) for link in links]
    best: Numbers = np.min(ways, axis=0)
    return best


def least_allreduce_seconds(
    problem: Problem, batch: Numbers, members: Figures, link: tuple[Figures, Figures]
) -> Numbers:
    """Seconds of a layer's all-reduces in a pass, prefills included, of the smallest rows."""
    load, row = problem.workload, least_row_bytes(problem)
    step = layer_allreduce_seconds(batch * row, members, link)
    prompt = layer_allreduce_seconds(load.input_tokens * row, members, link)
    seconds: Numbers = step + batch / load.output_tokens * prompt
    return seconds


def _grouped(problem: Problem, kinds: Counter[Kind], batch: Numbers) -> Numbers:
    """Seconds of a layer in a pass for the best group that a kind could be part of."""
    phases = _phases(problem, kinds, layer_part(problem.model), batch)
    speeds = [1 / (phases[0][i] + phases[1][i])[:, 0, :] for i in (0, 1)]
    order = [np.repeat(s, list(kinds.values()), axis=0) for s in speeds]
    fastest = [np.cumsum(np.sort(s, axis=0)[::-1], axis=0) for s in order]
    best = np.full((len(kinds), 1, len(batch)), NEVER)
    devices = len(order[0])
    for members in range(2, min(devices, LARGEST_GROUP + 1) + 1):
        work = np.max([1 / (s + f[members - 2]) for s, f in zip(speeds, fastest, strict=True)], 0)
        work = work if members <= LARGEST_GROUP else 0 * work
        allreduce = np.array([_allreduce_seconds(problem, kind, batch, members) for kind in kinds])
        best = np.minimum(best, (work + allreduce)[:, None, :])
    return best
