"""Device rates: what one kind of device could do at best in any pipeline; the ground of the bounds.

Arrays run over a grid of sequences held (n) and of batch in one pass (b), each cell a range: what
helps is select at the range's better end, so that every figure is a true bound.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from planner.cost.cost_model import BATCH_CAP
from planner.problem import Numbers, PlanDevice, Problem

MOST_KINDS = 48  # beyond that, speeds and memory are rounded up
ROUNDING = 1.1
LARGEST_GROUP = 16  # larger tensor-parallel groups are taken to cost only their all-reduce
STEPS = 48
NEVER = 1e30  # seconds; finite, so that nothing times it is defined


@dataclass(frozen=True, slots=True)
class Kind:
    """Devices alike in speed, memory and best links: inside the machine and to another one."""

    read: float  # seconds per byte
    compute: float  # seconds per FLOP
    memory: float  # bytes
    inside: tuple[float, float, int]  # latency, bandwidth, devices in the machine
    outside: tuple[float, float]


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
        1 / (device.bytes_per_second * device.memory_efficiency),
        1 / (device.flops * device.compute_efficiency),
        device.memory_bytes,
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
    def down(value: float) -> float:
        return float(ROUNDING ** np.floor(np.log(value) / np.log(ROUNDING)))

    memory = float(ROUNDING ** np.ceil(np.log(max(kind.memory, 1.0)) / np.log(ROUNDING)))
    return Kind(down(kind.read), down(kind.compute), memory, *best)


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
    parts = [(model.attention_parameters, model.kv_bytes), (model.mlp_parameters, 0.0)]
    square = 2.0 * load.input_tokens**2 * model.hidden
    whole = _layer(problem, kinds, model.layer_parameters, model.kv_bytes, square, high)
    attention, mlp = (_layer(problem, kinds, p, k, square if k else 0.0, high) for p, k in parts)
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


def _layer(
    problem: Problem,
    kinds: Counter[Kind],
    parameters: float,
    cache: float,
    square: float,
    batch: Numbers,
) -> Phases:
    """Seconds of a pass over a layer's part: (decode, prefill), each by reading and arithmetic."""
    load = problem.workload
    read = np.array([kind.read for kind in kinds])[:, None, None]
    compute = np.array([kind.compute for kind in kinds])[:, None, None]
    weight, prompts = parameters * problem.model.bytes_per_weight, batch / load.output_tokens
    decode = (
        read * (weight + batch * load.mean_context * cache),
        compute * (2 * batch * parameters),
    )
    prefill = (
        read * (weight + load.input_tokens * cache) * prompts,
        compute * (2 * load.input_tokens * parameters + square) * prompts,
    )
    return decode, prefill


def _alone(problem: Problem, kinds: Counter[Kind], batch: Numbers) -> Numbers:
    model = problem.model
    square = 2.0 * problem.workload.input_tokens**2 * model.hidden
    decode, prefill = _layer(problem, kinds, model.layer_parameters, model.kv_bytes, square, batch)
    seconds: Numbers = np.maximum(*decode) + np.maximum(*prefill)
    return seconds


def _allreduce_seconds(problem: Problem, kind: Kind, batch: Numbers, members: int) -> Numbers:
    """Seconds of a layer's all-reduces over the kind's best links, for so many members."""
    row = 2.0 * problem.model.hidden
    prompt = batch / problem.workload.output_tokens
    fits = members <= kind.inside[2]
    links = [kind.inside[:2], kind.outside] if fits else [kind.outside]

    def seconds(size: Numbers | float, link: tuple[float, float]) -> Numbers | float:
        ring = 2 * (members - 1) * (link[0] + size / (members * link[1]))
        return np.minimum(ring, link[0] + (members - 1) * size / link[1])

    prompt_size = problem.workload.input_tokens * row
    ways = [2 * (seconds(batch * row, x) + prompt * seconds(prompt_size, x)) for x in links]
    best: Numbers = np.min(ways, axis=0)
    return best


def _grouped(problem: Problem, kinds: Counter[Kind], batch: Numbers) -> Numbers:
    """Seconds of a layer in a pass for the best group that a kind could be part of."""
    model = problem.model
    square = 2.0 * problem.workload.input_tokens**2 * model.hidden
    phases = _layer(problem, kinds, model.layer_parameters, model.kv_bytes, square, batch)
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
