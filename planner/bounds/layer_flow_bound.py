"""Layer-flow bound: no plan can make more output tokens per second."""

import itertools
from dataclasses import dataclass

import numpy as np

from planner.bounds.device_rates import DeviceRates, device_rates_of
from planner.cost.feasibility import needed_bytes
from planner.problem import Numbers, Problem

NDBool = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
FLOWS = 32  # steps of the flow of one pipeline that are told apart
RATIO = 1.16  # between two steps
PRICES = np.array([0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9])  # of a pipeline's time
REFINEMENTS = 24
FEW_KINDS = 8  # for which the shares' proportions are searched
NEARLY = 0.6  # cells this near to the worst are looked at meanwhile
FACTORS = (2.0, 1.5, 1.5, 1.2, 1.2, 1.1, 1.1, 1.05, 1.05)


@dataclass(frozen=True, slots=True)
class Bound:
    """A value that no plan exceeds (or undercuts, for latency), and how it was obtained."""

    value: float
    method: str


def layer_flow_bound(problem: Problem) -> Bound:
    """No plan makes more output tokens per second.

    Capped layer-flow with a price on time. A pipeline of flow f (tokens/s) that holds n sequences
    in batches of b, with x layers on device d, obeys
      sum x = L;  x <= memory at n;  x * (seconds per token and layer at b) <= 1 / f;
      sum x * (seconds per pass and layer at b) <= n / f.
    For any price 0 <= k < 1 of the last line, f <= sum over d of u, with
      u = f x (1/L - k f (seconds per pass) / n) / (1 - k),
    so the sum over devices of their largest u over all (f, n, b) bounds all plans together.
    """
    rates, layers = device_rates_of(problem), problem.model.layers
    top = _highest_flow(rates, layers)
    if top <= 0:
        return Bound(0.0, "capped layer-flow")
    flows = top / RATIO ** np.arange(FLOWS + 1.0)
    flows[-1] = 0.0
    best = np.zeros(len(rates.counts))
    for high, low in itertools.pairwise(flows):
        best = _shares(rates, layers, low, high, best)
    if len(best) <= FEW_KINDS:
        best = _reshaped(rates, layers, flows, best)
    pipelines = max(1, most_pipelines(problem))
    value = min(float(best @ rates.counts), pipelines * top)
    return Bound(value, "capped layer-flow")


def _reshaped(rates: DeviceRates, layers: int, flows: Numbers, given: Numbers) -> Numbers:
    """Shares per kind that still cover every cell by some price, and sum to less.

    Any shares are made valid by scaling them until every cell has a price that they cover; the
    search is over their proportions.
    """
    cells = np.concatenate(
        [_cells(rates, layers, low, high) for high, low in itertools.pairwise(flows)]
    )
    shares = np.maximum(given, 1e-9 * given.max())
    over = _excess(cells, shares)
    tight = cells[over >= NEARLY * over.max()]
    best = float(_excess(tight, shares).max() * (shares @ rates.counts))
    for factor in FACTORS:
        for kind in range(len(shares)):
            for change in (factor, 1 / factor):
                tried = shares.copy()
                tried[kind] *= change
                value = float(_excess(tight, tried).max() * (tried @ rates.counts))
                if value < best:
                    best, shares = value, tried
    scaled: Numbers = shares * _excess(cells, shares).max()
    return scaled if scaled @ rates.counts < given @ rates.counts else given


def _excess(cells: Numbers, shares: Numbers) -> Numbers:
    """By how much shares fall short of each cell's cheapest price."""
    worst: Numbers = (cells / shares).max(axis=2).min(axis=1)
    return worst


def _cells(rates: DeviceRates, layers: int, low: float, high: float) -> Numbers:
    """Every live cell's shares by price and kind: [cells, prices, kinds]."""
    alone = _held_alone(rates, layers, low, high)
    options = [
        _priced(rates, layers, (alone, _held_grouped(rates, layers, high, weight)), low, price)
        for weight in _part_weights(rates)
        for price in PRICES
    ]
    shares = np.array(options)  # [prices, kinds, n, b]
    alive = (np.tensordot(rates.counts, shares, axes=(0, 1)) >= low * (1 - 1e-9)).all(axis=0)
    alive &= _is_cell(rates).any(axis=0)
    chosen: Numbers = np.moveaxis(shares[:, :, alive], 2, 0)
    return chosen


def most_pipelines(problem: Problem) -> int:
    """Pipelines that all memory together could hold."""
    have = sum(device.memory_bytes for device in problem.devices)
    return int(have / needed_bytes(problem))


def highest_flow(problem: Problem) -> float:
    """The highest flow that one pipeline over all devices might have."""
    return _highest_flow(device_rates_of(problem), problem.model.layers)


def _highest_flow(rates: DeviceRates, layers: int) -> float:
    low, high = 0.0, float((rates.counts[:, None, None] / rates.token_alone).sum(axis=0).max())
    high = 2 * high + 1 / layers
    nothing = np.zeros(len(rates.counts))
    for _ in range(REFINEMENTS):
        middle = (low * high) ** 0.5 if low else high / 8
        alive = _shares(rates, layers, middle, middle, nothing).max() > 0
        low, high = (middle, high) if alive else (low, middle)
        if not alive and high < 1e-9:
            return 0.0
    return high


def _shares(rates: DeviceRates, layers: int, low: float, high: float, given: Numbers) -> Numbers:
    """The largest u of every kind for flows from `low` to `high`, at least what is given already.

    In every cell that price is select which adds least to the bound.
    """
    alone = _held_alone(rates, layers, low, high)
    floor = given[:, None, None]
    least = np.full(alone.shape[1:], np.inf)
    alive = np.ones(alone.shape[1:], dtype=bool)
    chosen = np.zeros(alone.shape)
    for weight in _part_weights(rates):
        grouped = _held_grouped(rates, layers, high, weight)
        for price in PRICES:
            u = _priced(rates, layers, (alone, grouped), low, price)
            alive &= np.tensordot(rates.counts, u, axes=1) >= low * (1 - 1e-9)
            whole = np.tensordot(rates.counts, np.maximum(u, floor), axes=1)
            better = whole < least
            least = np.where(better, whole, least)
            chosen = np.where(better, u, chosen)
    chosen[:, ~alive] = 0.0
    largest: Numbers = np.maximum(given, chosen.max(axis=(1, 2)))
    return largest


def _priced(
    rates: DeviceRates, layers: int, held: tuple[Numbers, Numbers], low: float, price: float
) -> Numbers:
    per_pass = (rates.pass_alone, rates.pass_grouped)
    best = np.zeros(held[0].shape)
    for flow_layers, seconds in zip(held, per_pass, strict=True):
        rest = 1 / layers - price * low * seconds / rates.high[None, :, None]
        best = np.maximum(best, flow_layers * np.maximum(rest, 0.0))
    return best / (1 - price)


def _held_alone(rates: DeviceRates, layers: int, low: float, high: float) -> Numbers:
    """Flow times layers of a device that serves whole layers alone, at most."""
    most = np.minimum(rates.layers_alone, layers)
    if low > 0:
        most = np.minimum(most, np.floor(1 / (low * rates.token_alone) + 1e-9))
    flow_layers = np.minimum(most * high, 1 / rates.token_alone)
    return np.where(_is_cell(rates), flow_layers, 0.0)


def _held_grouped(
    rates: DeviceRates, layers: int, high: float, weight: tuple[Numbers, Numbers]
) -> Numbers:
    """Flow times layers, attention and MLP weighted, of a member of a group, at most."""
    attention, mlp = weight
    by_memory = np.maximum(attention / rates.bytes_parts[0], mlp / rates.bytes_parts[1])
    best = np.minimum(rates.memory * by_memory, layers) * high
    for part in rates.token_parts:
        seconds = [p + w * rates.token_allreduce for p, w in zip(part, weight, strict=True)]
        best = np.minimum(best, np.maximum(attention / seconds[0], mlp / seconds[1]))
    return np.where(_is_cell(rates), best, 0.0)


def _is_cell(rates: DeviceRates) -> NDBool:
    """Cells in which a batch can be at most all sequences: [1, n, b]."""
    return (rates.low[None, None, :] <= rates.high[None, :, None]) & (rates.counts > 0)[
        :, None, None
    ]


def _part_weights(rates: DeviceRates) -> list[tuple[Numbers, Numbers]]:
    """How attention and MLP are weighed against each other: by bytes, with and without KV."""
    held, mlp = rates.bytes_parts
    bare = rates.bytes_parts[0].min()
    weights = []
    for attention in (np.full_like(held, bare), held):
        weights.append((attention / (attention + mlp), mlp / (attention + mlp)))
    return weights
