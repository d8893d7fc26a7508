"""Shares: linear bounds of what counts of devices can give to one pipeline, box by box.

A pipeline of flow f (tokens/s) that holds n sequences in passes of b obeys, over its stages,
  sum x = L;  x <= memory at n;  x * (seconds per token and layer at b) <= 1 / f;
  sum (x * (seconds per pass and layer) + hop) + head <= n / f,
so for any price 0 <= k < 1 of the last line, f <= sum over its stages of
  gain = f * (x * (1/L - k (f/n) (seconds per pass and layer)) - k (f/n) hop) / (1 - k).
Shares per device that cover the gain of every group bound the whole pipeline.
"""

from dataclasses import dataclass

import numpy as np

from planner.bound_boxes import Boxes, NDBool
from planner.bound_groups import Groups, decode_parts, prefill_parts
from planner.problem import Numbers

PRICES = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])[:, None, None]
TINY = 1e-9


@dataclass(frozen=True, eq=False, slots=True)
class Shares:
    """For each price: counts c can serve in a box only if shares @ c >= need + strain * way.

    `way`: seconds that the hops of the pipeline take beyond the best hop of each stage.
    """

    shares: Numbers  # [price, box, class]
    need: Numbers  # [price, box]
    strain: Numbers  # [price, box]
    alone: NDBool  # [box, group]: groups that can serve all layers as one stage


@dataclass(frozen=True, eq=False, slots=True)
class _Terms:
    """What the gains of all groups are made of: [box, group]."""

    boxes: Boxes
    layers: float
    urgency: Numbers  # [box, 1]: 1 / the most seconds that a pass through all stages may take
    seconds: Numbers
    most: Numbers  # layers of a stage, in the middle, first, last
    most_first: Numbers
    most_last: Numbers
    hop: Numbers
    last_hop: Numbers  # with the head

    def gains(self, most: Numbers, hop: Numbers) -> Numbers:
        """Gain of each group as a stage of a layer at least: [price, box, group].

        -inf for a group that holds none.
        """
        cost = PRICES * self.urgency
        slope = 1 / self.layers - cost * self.seconds
        inner = np.where(slope > 0, most, 1.0) * slope - cost * hop
        flow = np.where(inner > 0, self.boxes.high_flow[:, None], self.boxes.low_flow[:, None])
        return np.where(most >= 1 - TINY, inner * flow / (1 - PRICES), -np.inf)


def shares_of(groups: Groups, boxes: Boxes) -> Shares:
    """Work out the shares in every box."""
    terms, tail = _terms(groups, boxes), _Tail(groups, boxes)
    shares = _covering(groups, terms.gains(terms.most, terms.hop), tail.shares(terms))
    held = shares @ groups.counts.T
    first = held - terms.gains(terms.most_first, terms.hop)
    last = held - terms.gains(terms.most_last, terms.last_hop)
    need = boxes.low_flow + np.zeros(shares.shape[:2])
    for loss in (first.min(axis=2), last.min(axis=2)):
        need += np.minimum(loss, tail.least_loss(terms)) if groups.has_larger else loss
    strain = (PRICES / (1 - PRICES))[:, :, 0] * boxes.low_flow * terms.urgency[:, 0]
    return Shares(shares, need, strain, _alone(groups, boxes, terms))


def _terms(groups: Groups, boxes: Boxes) -> _Terms:
    least, most = boxes.least_batch, boxes.most_batch
    latency = groups.hop[0]
    per_token = groups.pass_seconds(most) / most[:, None]
    head = groups.head_seconds(least, most)
    head_per_token = np.minimum(head, groups.head_seconds(most, most)) / most[:, None]
    return _Terms(
        boxes,
        groups.problem.model.layers,
        (boxes.low_flow / boxes.high_held)[:, None],
        groups.pass_seconds(least),
        _most_layers(groups, boxes, per_token, 0 * head, 0),
        _most_layers(groups, boxes, per_token, 0 * head, 1),
        _most_layers(groups, boxes, per_token, head_per_token, 1),
        groups.hop_seconds(least) - _bridge(groups, least),
        latency + head - _bridge(groups, least),
    )


def _bridge(groups: Groups, batch: Numbers) -> Numbers:
    """Seconds that a group over several regions may save of the ways between them."""
    latency, per_byte = groups.exits.beyond
    spans = (groups.touched.sum(axis=1) > 1)[:, None] * groups.touched
    size = batch[:, None] * 2.0 * groups.problem.model.hidden
    seconds: Numbers = spans @ latency + size * (spans @ per_byte)
    return seconds


def _most_layers(
    groups: Groups, boxes: Boxes, per_token: Numbers, head: Numbers, ends: int
) -> Numbers:
    """Most layers of a stage by memory and by time, with so many of the model's ends."""
    model, load = groups.problem.model, groups.problem.workload
    layer = model.layer_bytes + model.kv_bytes * load.context * boxes.low_held[:, None]
    by_memory = np.floor((groups.memory - ends * model.end_bytes) / layer + TINY)
    by_time = np.floor((1 / boxes.low_flow[:, None] - head) / per_token + TINY)
    most: Numbers = np.clip(np.minimum(by_memory, by_time), 0, model.layers)
    return most


def _alone(groups: Groups, boxes: Boxes, terms: _Terms) -> NDBool:
    head = groups.head_seconds(boxes.least_batch, boxes.most_batch)
    per_pass = terms.layers * terms.seconds + head
    quick = per_pass * terms.urgency <= 1 + TINY
    per_token = groups.pass_seconds(boxes.most_batch) / boxes.most_batch[:, None]
    whole = _most_layers(groups, boxes, per_token, 0 * per_token, 2) >= terms.layers
    alone: NDBool = quick & whole
    return alone


def _covering(groups: Groups, gains: Numbers, floor: Numbers) -> Numbers:
    """Shares [price, box, class] of at least `floor` that cover the gain of every group."""
    shares = np.maximum(floor, 0.0)
    single = groups.members == 1
    order = groups.counts[single].argmax(axis=1)
    shares[..., order] = np.maximum(shares[..., order], gains[..., single])
    short = gains > (shares @ groups.counts.T) * (1 + TINY)
    for group in np.flatnonzero(short.any(axis=(0, 1))):
        held, gain = shares @ groups.counts[group], gains[..., group]
        inside = np.flatnonzero(groups.counts[group])
        more = np.where(gain > held, gain / np.maximum(held, 1e-300), 1.0)
        bare = (gain > held) & (held <= 0)
        for kind in inside:
            fair = np.where(bare, gain / groups.members[group], 0.0)
            shares[..., kind] = np.where(bare, fair, shares[..., kind] * more)
    return shares


class _Tail:
    """Groups over machines with more members than the arrays list, bounded device by device."""

    def __init__(self, groups: Groups, boxes: Boxes) -> None:
        self.groups, self.boxes = groups, boxes
        self.is_needed = groups.has_larger
        if not self.is_needed:
            return
        kinds, stock = groups.stock.kinds, groups.stock
        members = np.array([groups.most_told_apart + 1.0])
        outside = (
            np.array([kind.outside[0] for kind in kinds]),
            np.array([kind.outside[1] for kind in kinds]),
        )
        least, most = boxes.least_batch, boxes.most_batch
        self.talk = groups.talk_seconds(most, members, outside) / most[:, None]
        model, load = groups.problem.model, groups.problem.workload
        self.layer = model.layer_bytes + model.kv_bytes * load.context * boxes.low_held[:, None]
        memory = np.array([kind.memory for kind in kinds])
        self.by_memory = memory / self.layer
        speeds = (
            np.array([1 / kind.read for kind in kinds]),
            np.array([1 / kind.compute for kind in kinds]),
        )
        whole = tuple(speed @ np.array(stock.counts, dtype=float) for speed in speeds)
        self.by_time = self._by_time(most, speeds, (float(whole[0]), float(whole[1])))
        self.seconds = self._least_seconds(least, speeds, outside)

    def _by_time(
        self, batch: Numbers, speeds: tuple[Numbers, Numbers], whole: tuple[float, float]
    ) -> Numbers:
        """Layers of a device at most, so that those of a group are at most their sum.

        Reading a / sum r and arithmetic c / sum s of a group take at least
        (a/R + c/S)^2 / sum(a r/R^2 + c s/S^2) seconds for any R, S (Cauchy).
        """
        problem, one = self.groups.problem, (np.ones(1), np.ones(1))
        decode = decode_parts(problem, batch[:, None], one)
        prompt = prefill_parts(problem, one)
        best = np.full_like(self.by_memory, np.inf)
        for i in (0, 1):
            for j in (0, 1):
                work = [np.zeros((len(batch), 1)), np.zeros((len(batch), 1))]
                work[i] = work[i] + decode[i] / batch[:, None]
                work[j] = work[j] + prompt[j]
                spent = sum(w / v for w, v in zip(work, whole, strict=True))
                parts = zip(work, speeds, whole, strict=True)
                speed = sum(w * s / v**2 for w, s, v in parts)
                seconds = self.talk + spent**2 / np.maximum(speed, 1e-300)
                best = np.minimum(best, 1 / (self.boxes.low_flow[:, None] * seconds))
        return best

    def _least_seconds(
        self,
        batch: Numbers,
        speeds: tuple[Numbers, Numbers],
        outside: tuple[Numbers, Numbers],
    ) -> Numbers:
        """Seconds of a layer in a pass, for the best group that a class could be in."""
        problem, stock = self.groups.problem, self.groups.stock
        from_fastest = [np.sort(np.repeat(s, stock.counts))[::-1].cumsum() for s in speeds]
        best = np.full_like(self.by_memory, np.inf)
        for members in range(self.groups.most_told_apart + 1, len(from_fastest[0]) + 1):
            fast = (from_fastest[0][members - 1 :][:1], from_fastest[1][members - 1 :][:1])
            work = np.maximum(*decode_parts(problem, batch[:, None], fast))
            work = work + batch[:, None] * np.maximum(*prefill_parts(problem, fast))
            size = np.array([float(members)])
            talk = self.groups.talk_seconds(batch, size, outside)
            best = np.minimum(best, work + talk)
        return best

    def _slope(self, terms: _Terms) -> Numbers:
        slope = 1 / terms.layers - PRICES * terms.urgency * self.seconds
        return np.maximum(slope, 0.0)

    def shares(self, terms: _Terms) -> Numbers:
        """What a device adds to any such group: [price, box, class]."""
        if not self.is_needed:
            return np.zeros((len(PRICES), len(self.boxes), self.groups.counts.shape[1]))
        flow = self.boxes.high_flow[:, None]
        most = np.minimum(self.by_memory, self.by_time)
        whole = flow * most * self._slope(terms) + self._bridges(terms)
        shares: Numbers = whole / (1 - PRICES)
        return shares

    def _bridges(self, terms: _Terms) -> Numbers:
        """The ways out of regions that a group may save its pipeline, shared by its members.

        Two of them it pays itself: its all-reduces take two such ways for each layer.
        """
        latency, per_byte = self.groups.exits.beyond
        size = 2.0 * self.groups.problem.model.hidden * self.boxes.least_batch[:, None]
        saved = max(len(latency) - 2, 0) * (latency.max() + size * per_byte.max())
        saved = saved / (self.groups.most_told_apart + 1)
        paid: Numbers = self.boxes.high_flow[:, None] * PRICES * terms.urgency * saved
        return paid

    def least_loss(self, terms: _Terms) -> Numbers:
        """By how much an end lowers such a group, at least: only if memory binds every class."""
        binds = (self.by_memory <= self.by_time).all(axis=1)
        model, load = self.groups.problem.model, self.groups.problem.workload
        layer = model.layer_bytes + model.kv_bytes * load.context * self.boxes.high_held
        slope = self._slope(terms).min(axis=2)
        lost = self.boxes.low_flow * model.end_bytes / layer * slope / (1 - PRICES[:, :, 0])
        return np.where(binds, lost, 0.0)
