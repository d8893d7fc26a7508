"""Layer assignment: layers dealt to stages that stay in place, so that little must be loaded anew.

Dynamic programming over survivors in order: least price of the first layers by the first survivors,
where a price is seconds, bytes to load, or both. Then survivors change places as an assignment
problem where that saves loading, and layers are dealt again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planner.problem import Numbers
from planner.search.device_group import BATCHES, SEQUENCES, SPLIT_BATCH, DeviceGroup
from planner.search.layer_balance import pipeline_of
from swarm.plan import Pipeline

EXCHANGES = 3  # rounds of changing places and dealing again
MEMORY_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)  # of the most sequences that the survivors can hold
PACES = (1.0, 1.1, 1.25, 1.5, 2.0, np.inf)  # slowest stage, of the least that it can be
LOADINGS = (0.0, 0.01, 0.1, 1.0, 100.0)  # price of loading a layer, in seconds of serving one
EVENNESS = 1e-4  # price of unlike layer counts where all else is equal
HALVINGS = 20
BATCH = int(np.searchsorted(BATCHES, SPLIT_BATCH))
FORBIDDEN = 1e9  # price of a place that a survivor cannot take


@dataclass(frozen=True, eq=False, slots=True)
class SurvivingStage:
    """What is left of a stage, or a spare: its group, the layers held, and how much of them."""

    group: DeviceGroup
    start: int = 0
    end: int = 0
    held_share: float = 0.0  # share of those layers' bytes that the members hold

    def overlap(self, begin: Numbers, end: Numbers) -> Numbers:
        """Layers of `[begin, end)` that need not be loaded."""
        common = np.minimum(end, self.end) - np.maximum(begin, self.start)
        held: Numbers = self.held_share * np.maximum(common, 0.0)
        return held


@dataclass(frozen=True, eq=False, slots=True)
class AssignmentCase:
    """Survivors in order, what each may hold, and what its layers cost."""

    survivors: tuple[SurvivingStage, ...]
    most: Numbers  # [survivors, 4]: layers in the middle, first, last, alone
    seconds: Numbers  # [survivors]: price of serving a layer
    loading: float  # price of loading a layer

    def ordered(self, order: Sequence[int]) -> "AssignmentCase":
        """The same with the survivors in another order."""
        chosen = tuple(self.survivors[i] for i in order)
        return AssignmentCase(
            chosen, self.most[list(order)], self.seconds[list(order)], self.loading
        )


def layer_counts(case: AssignmentCase, layers: int) -> tuple[int, ...]:
    """Layers of each survivor, in order, at the least price; empty if they do not fit."""
    edges = np.arange(layers + 1.0)
    span = edges[None, :] - edges[:, None]
    best, froms = np.where(edges == 0, 0.0, np.inf), []
    for place, survivor in enumerate(case.survivors):
        lacking = span - survivor.overlap(edges[:, None], edges[None, :])
        price = case.seconds[place] * span + case.loading * (lacking + EVENNESS * span**2)
        fits = (span > 0) & (span <= _most(case.most[place], layers))
        price = np.where(fits, price, np.inf)
        np.fill_diagonal(price, 0.0)
        reached = best[:, None] + price
        froms.append(reached.argmin(axis=0))
        best = reached.min(axis=0)
    return _counts_along(froms, layers) if np.isfinite(best[-1]) else ()


def _most(most: Numbers, layers: int) -> Numbers:
    """Most layers of a stage by where it begins (rows) and ends (columns)."""
    bound = np.full((layers + 1, layers + 1), most[0])
    bound[0], bound[:, -1], bound[0, -1] = most[1], most[2], most[3]
    return bound


def _counts_along(
    froms: Sequence[np.ndarray[tuple[int], np.dtype[np.int64]]], at: int
) -> tuple[int, ...]:
    counts = []
    for begins in reversed(froms):
        begin = int(begins[at])
        counts.append(at - begin)
        at = begin
    return tuple(reversed(counts))


def best_order_and_counts(
    case: AssignmentCase, layers: int
) -> tuple[AssignmentCase, tuple[int, ...]]:
    """The order and the division after exchanges of places that save loading."""
    counts = layer_counts(case, layers)
    for _ in range(EXCHANGES if counts and case.loading else 0):
        tried = case.ordered(_order_with_least_loading(case, counts, layers))
        dealt = layer_counts(tried, layers)
        if not dealt or _loaded_layers(tried, dealt) >= _loaded_layers(case, counts) - 1e-9:
            break
        case, counts = tried, dealt
    return case, counts


def _loaded_layers(case: AssignmentCase, counts: Sequence[int]) -> float:
    """Layers that must be loaded."""
    ends = np.cumsum(counts)
    held = [
        float(survivor.overlap(end - count, end))
        for survivor, count, end in zip(case.survivors, np.array(counts), ends, strict=True)
    ]
    return float(sum(counts)) - sum(held)


def _order_with_least_loading(
    case: AssignmentCase, counts: Sequence[int], layers: int
) -> list[int]:
    """Survivors in the order of the intervals in which they load least; idle ones last."""
    from scipy.optimize import linear_sum_assignment  # loaded late: help needs it not

    ends = np.cumsum(counts)
    busy = [i for i, count in enumerate(counts) if count]
    begin, end = (ends - counts)[busy].astype(float), ends[busy].astype(float)
    prices = []
    for place, survivor in enumerate(case.survivors):
        most = _most(case.most[place], layers)[begin.astype(int), end.astype(int)]
        lacking = end - begin - survivor.overlap(begin, end)
        prices.append(np.where(end - begin <= most, lacking, FORBIDDEN))
    rows, columns = linear_sum_assignment(np.array(prices))
    placed = [int(row) for _, row in sorted(zip(columns, rows, strict=True))]
    return [*placed, *(i for i in range(len(counts)) if i not in set(placed))]


def pipelines_over(
    survivors: Sequence[SurvivingStage], layers: int, objective: str
) -> list[Pipeline]:
    """Unlike pipelines over the survivors: some load little, some serve fast."""
    if not survivors:
        return []
    cases = _latency_cases if objective == "latency" else _throughput_cases
    found: dict[Pipeline, None] = {}
    for case in cases(tuple(survivors), layers):
        ordered, counts = best_order_and_counts(case, layers)
        if counts:
            found[pipeline_of([r.group for r in ordered.survivors], counts)] = None
    return list(found)


def _latency_cases(survivors: tuple[SurvivingStage, ...], layers: int) -> Iterator[AssignmentCase]:
    """Seconds of one request against loading, memory for one sequence."""
    seconds = np.array([survivor.group.request_seconds for survivor in survivors])
    for loading in LOADINGS:
        yield AssignmentCase(
            survivors, _most_by_memory(survivors, 0), seconds, loading * float(seconds.mean())
        )


def _throughput_cases(
    survivors: tuple[SurvivingStage, ...], layers: int
) -> Iterator[AssignmentCase]:
    """Least loading for several numbers of sequences held and paces of the slowest stage."""
    seconds = np.array([survivor.group.seconds[BATCH] for survivor in survivors])
    head = np.array([survivor.group.head_seconds[BATCH] for survivor in survivors])
    ends = np.stack([0 * head, 0 * head, head, head], axis=1)
    roomy = [
        n for n in range(len(SEQUENCES)) if _most_by_memory(survivors, n)[:, 0].sum() >= layers
    ]
    known = set[bytes]()
    for share in MEMORY_SHARES if roomy else ():
        room = _most_by_memory(
            survivors, int(np.searchsorted(SEQUENCES, share * SEQUENCES[roomy[-1]]))
        )

        def most(pace: float, room: Numbers = room) -> Numbers:
            held: Numbers = np.clip(np.floor((pace - ends) / seconds[:, None] + 1e-9), 0, room)
            return held

        least = _least_pace(most, layers, float(seconds.max()) * layers)
        for pace in PACES:
            held = most(least * pace)
            if held.tobytes() not in known:
                known.add(held.tobytes())
                yield AssignmentCase(survivors, held, 0 * seconds, 1.0)


def _most_by_memory(survivors: Sequence[SurvivingStage], sequences: int) -> Numbers:
    """Most layers by memory beside so many sequences: [survivors, 4]."""
    groups = [survivor.group for survivor in survivors]
    tables = [(a.layers, a.first_layers, a.last_layers, a.only_layers) for a in groups]
    return np.array([[table[sequences] for table in row] for row in tables])


def _least_pace(most: Callable[[float], Numbers], layers: int, high: float) -> float:
    """The least seconds of the slowest stage in which the survivors hold all layers."""
    low = 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if most(middle)[:, 0].sum() >= layers else (middle, high)
    return high
