"""Division: layers dealt to stages that stay in place, so that little must be loaded anew.

Dynamic programming over remnants in order: least price of the first layers by the first remnants,
where a price is seconds, bytes to load, or both. Then remnants change places as an assignment
problem where that saves loading, and layers are dealt again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from planner.problem import Numbers
from planner.search.device_group import BATCHES, SEQUENCES, SHARE_BATCH, Atom
from planner.search.layer_balance import pipeline_of
from swarm.plan import Pipeline

EXCHANGES = 3  # rounds of changing places and dealing again
ROOMS = (1.0, 0.8, 0.6, 0.4, 0.2)  # of the most sequences that the remnants can hold
PACES = (1.0, 1.1, 1.25, 1.5, 2.0, np.inf)  # slowest stage, of the least that it can be
LOADINGS = (0.0, 0.01, 0.1, 1.0, 100.0)  # price of loading a layer, in seconds of serving one
EVENNESS = 1e-4  # price of unlike layer counts where all else is equal
HALVINGS = 20
BATCH = int(np.searchsorted(BATCHES, SHARE_BATCH))
FORBIDDEN = 1e9  # price of a place that a remnant cannot take


@dataclass(frozen=True, eq=False, slots=True)
class Remnant:
    """What is left of a stage, or a spare: its atom, the layers held, and how much of them."""

    atom: Atom
    start: int = 0
    end: int = 0
    kept: float = 0.0  # share of those layers' bytes that the members hold

    def overlap(self, begin: Numbers, end: Numbers) -> Numbers:
        """Layers of `[begin, end)` that need not be loaded."""
        common = np.minimum(end, self.end) - np.maximum(begin, self.start)
        held: Numbers = self.kept * np.maximum(common, 0.0)
        return held


@dataclass(frozen=True, eq=False, slots=True)
class Case:
    """Remnants in order, what each may hold, and what its layers cost."""

    remnants: tuple[Remnant, ...]
    most: Numbers  # [remnants, 4]: layers in the middle, first, last, alone
    seconds: Numbers  # [remnants]: price of serving a layer
    loading: float  # price of loading a layer

    def ordered(self, order: Sequence[int]) -> "Case":
        """The same with the remnants in another order."""
        chosen = tuple(self.remnants[i] for i in order)
        return Case(chosen, self.most[list(order)], self.seconds[list(order)], self.loading)


def divided(case: Case, layers: int) -> tuple[int, ...]:
    """Layers of each remnant, in order, at the least price; empty if they do not fit."""
    edges = np.arange(layers + 1.0)
    span = edges[None, :] - edges[:, None]
    best, froms = np.where(edges == 0, 0.0, np.inf), []
    for place, remnant in enumerate(case.remnants):
        lacking = span - remnant.overlap(edges[:, None], edges[None, :])
        price = case.seconds[place] * span + case.loading * (lacking + EVENNESS * span**2)
        fits = (span > 0) & (span <= _most(case.most[place], layers))
        price = np.where(fits, price, np.inf)
        np.fill_diagonal(price, 0.0)
        reached = best[:, None] + price
        froms.append(reached.argmin(axis=0))
        best = reached.min(axis=0)
    return _traced(froms, layers) if np.isfinite(best[-1]) else ()


def _most(most: Numbers, layers: int) -> Numbers:
    """Most layers of a stage by where it begins (rows) and ends (columns)."""
    bound = np.full((layers + 1, layers + 1), most[0])
    bound[0], bound[:, -1], bound[0, -1] = most[1], most[2], most[3]
    return bound


def _traced(
    froms: Sequence[np.ndarray[tuple[int], np.dtype[np.int64]]], at: int
) -> tuple[int, ...]:
    counts = []
    for begins in reversed(froms):
        begin = int(begins[at])
        counts.append(at - begin)
        at = begin
    return tuple(reversed(counts))


def settled(case: Case, layers: int) -> tuple[Case, tuple[int, ...]]:
    """The order and the division after exchanges of places that save loading."""
    counts = divided(case, layers)
    for _ in range(EXCHANGES if counts and case.loading else 0):
        tried = case.ordered(_exchanged(case, counts, layers))
        dealt = divided(tried, layers)
        if not dealt or _loaded(tried, dealt) >= _loaded(case, counts) - 1e-9:
            break
        case, counts = tried, dealt
    return case, counts


def _loaded(case: Case, counts: Sequence[int]) -> float:
    """Layers that must be loaded."""
    ends = np.cumsum(counts)
    held = [
        float(remnant.overlap(end - count, end))
        for remnant, count, end in zip(case.remnants, np.array(counts), ends, strict=True)
    ]
    return float(sum(counts)) - sum(held)


def _exchanged(case: Case, counts: Sequence[int], layers: int) -> list[int]:
    """Remnants in the order of the intervals in which they load least; idle ones last."""
    ends = np.cumsum(counts)
    busy = [i for i, count in enumerate(counts) if count]
    begin, end = (ends - counts)[busy].astype(float), ends[busy].astype(float)
    prices = []
    for place, remnant in enumerate(case.remnants):
        most = _most(case.most[place], layers)[begin.astype(int), end.astype(int)]
        lacking = end - begin - remnant.overlap(begin, end)
        prices.append(np.where(end - begin <= most, lacking, FORBIDDEN))
    rows, columns = linear_sum_assignment(np.array(prices))
    placed = [int(row) for _, row in sorted(zip(columns, rows, strict=True))]
    return [*placed, *(i for i in range(len(counts)) if i not in set(placed))]


def pipelines_over(remnants: Sequence[Remnant], layers: int, objective: str) -> list[Pipeline]:
    """Unlike pipelines over the remnants: some load little, some serve fast."""
    if not remnants:
        return []
    cases = _latency_cases if objective == "latency" else _throughput_cases
    found: dict[Pipeline, None] = {}
    for case in cases(tuple(remnants), layers):
        ordered, counts = settled(case, layers)
        if counts:
            found[pipeline_of([r.atom for r in ordered.remnants], counts)] = None
    return list(found)


def _latency_cases(remnants: tuple[Remnant, ...], layers: int) -> Iterator[Case]:
    """Seconds of one request against loading, memory for one sequence."""
    seconds = np.array([remnant.atom.request_seconds for remnant in remnants])
    for loading in LOADINGS:
        yield Case(remnants, _room(remnants, 0), seconds, loading * float(seconds.mean()))


def _throughput_cases(remnants: tuple[Remnant, ...], layers: int) -> Iterator[Case]:
    """Least loading for several numbers of sequences held and paces of the slowest stage."""
    seconds = np.array([remnant.atom.seconds[BATCH] for remnant in remnants])
    head = np.array([remnant.atom.head_seconds[BATCH] for remnant in remnants])
    ends = np.stack([0 * head, 0 * head, head, head], axis=1)
    roomy = [n for n in range(len(SEQUENCES)) if _room(remnants, n)[:, 0].sum() >= layers]
    known = set[bytes]()
    for share in ROOMS if roomy else ():
        room = _room(remnants, int(np.searchsorted(SEQUENCES, share * SEQUENCES[roomy[-1]])))

        def most(pace: float, room: Numbers = room) -> Numbers:
            held: Numbers = np.clip(np.floor((pace - ends) / seconds[:, None] + 1e-9), 0, room)
            return held

        least = _least_pace(most, layers, float(seconds.max()) * layers)
        for pace in PACES:
            held = most(least * pace)
            if held.tobytes() not in known:
                known.add(held.tobytes())
                yield Case(remnants, held, 0 * seconds, 1.0)


def _room(remnants: Sequence[Remnant], sequences: int) -> Numbers:
    """Most layers by memory beside so many sequences: [remnants, 4]."""
    atoms = [remnant.atom for remnant in remnants]
    tables = [(a.layers, a.first_layers, a.last_layers, a.only_layers) for a in atoms]
    return np.array([[table[sequences] for table in row] for row in tables])


def _least_pace(most: Callable[[float], Numbers], layers: int, high: float) -> float:
    """The least seconds of the slowest stage in which the remnants hold all layers."""
    low = 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if most(middle)[:, 0].sum() >= layers else (middle, high)
    return high
