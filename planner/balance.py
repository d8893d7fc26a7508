"""Balance: how many layers each atom of a pipeline serves, for throughput or for latency."""

from collections.abc import Sequence

import numpy as np

from planner.atoms import BATCHES, Atom
from planner.cost import GROUPS_PER_STAGE, CostModel
from planner.problem import Numbers
from swarm.plan import Pipeline, Stage

NDInt = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
HALVINGS = 14
TRIED = 2  # most promising divisions that are priced exactly


def throughput_layers(cost: CostModel, atoms: Sequence[Atom]) -> list[tuple[int, ...]]:
    """Layers of each atom, in that order, for the most promising (sequences, batch) pairs."""
    sequences, batches = _cases(len(atoms))
    seconds = np.array([atom.seconds for atom in atoms])[:, batches]
    most = _most(atoms)[:, sequences]
    head = np.zeros_like(seconds)
    head[-1] = atoms[-1].head_seconds[batches]
    possible = most.sum(axis=0) >= cost.model.layers
    if not possible.any():
        return []
    seconds, most, head = seconds[:, possible], most[:, possible], head[:, possible]
    layers = _least_cycle(cost.model.layers, seconds, most, head)
    held, batch = BATCHES[sequences[possible]], BATCHES[batches[possible]]
    times = layers * seconds + np.where(layers > 0, head, 0.0)
    far = _hop_seconds(cost, atoms, batch)
    value = held / np.maximum(times.sum(axis=0) + far, held / batch * times.max(axis=0))
    best = np.argsort(-value, kind="stable")[:TRIED]
    return list(dict.fromkeys(tuple(int(x) for x in layers[:, k]) for k in best))


def _cases(atoms: int) -> tuple[NDInt, NDInt]:
    """Indexes into BATCHES of sequences held and of the batch in one pass."""
    ratio = BATCHES[:, None] / BATCHES[None, :]
    sequences, batches = np.nonzero((ratio >= 1) & (ratio <= GROUPS_PER_STAGE * atoms))
    return sequences, batches


def _most(atoms: Sequence[Atom]) -> Numbers:
    ends = len(atoms) - 1
    return np.array(
        [atom.most_layers(first=i == 0, last=i == ends) for i, atom in enumerate(atoms)]
    )


def _least_cycle(layers: int, seconds: Numbers, most: Numbers, head: Numbers) -> Numbers:
    """Layers of each atom (rows) in each case (columns) with the shortest slowest stage."""

    def held(limit: Numbers) -> Numbers:
        return np.clip(np.floor((limit - head) / seconds + 1e-9), 0, most)

    high = (most * seconds + head).max(axis=0)
    low = np.zeros_like(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        met = held(middle).sum(axis=0) >= layers
        low, high = np.where(met, low, middle), np.where(met, middle, high)
    return _without_surplus(layers, held(high), seconds)


def _without_surplus(layers: int, held: Numbers, seconds: Numbers) -> Numbers:
    """Take surplus layers from the stages where that saves the most time."""
    columns = np.arange(held.shape[1])
    while (over := held.sum(axis=0) > layers).any():
        busiest = np.where(held > 0, held * seconds, -1).argmax(axis=0)
        held[busiest[over], columns[over]] -= 1
    return held


def _hop_seconds(cost: CostModel, atoms: Sequence[Atom], batch: Numbers) -> Numbers:
    where = [int(cost.problem.machine_of[atom.members[0]]) for atom in atoms]
    if len(where) == 1:
        return np.zeros_like(batch)
    rows, columns = np.array(where), np.array([*where[1:], where[0]])
    latency = float(cost.problem.latency[rows, columns].sum())
    per_byte = float((1 / cost.problem.bandwidth[rows, columns])[:-1].sum())
    return latency + per_byte * batch * cost.model.hidden * 2


def pipeline_of(atoms: Sequence[Atom], layers: Sequence[int]) -> Pipeline:
    """Stages over the atoms that hold layers; the others are left out."""
    stages, at = [], 0
    for atom, count in zip(atoms, layers, strict=True):
        if count:
            stages.append(Stage(at, at + count, atom.shards))
            at += count
    return Pipeline(tuple(stages))


def latency_layers(cost: CostModel, atoms: Sequence[Atom]) -> tuple[int, ...]:
    """Layers to the quickest atoms first, as far as memory goes, one to each; empty if too few."""
    most = _most(atoms)[:, 0]
    left = cost.model.layers - len(atoms)
    if most.min() < 1 or most.sum() < cost.model.layers or left < 0:
        return ()
    layers = [1] * len(atoms)
    for i in sorted(range(len(atoms)), key=lambda i: (atoms[i].request_seconds, i)):
        more = min(left, int(most[i]) - 1)
        layers[i] += more
        left -= more
    return tuple(layers)
