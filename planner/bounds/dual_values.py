"""Dual values: linear bounds of what counts of devices can give to one pipeline, box by box.

A pipeline of flow f (tokens/s) that holds n sequences in passes of b obeys, over its stages,
  sum x = L;  x <= memory at n;  x * (seconds per token and layer at b) <= 1 / f;
  sum (x * (seconds per pass and layer) + hop) + head <= n / f,
so for any price 0 <= k < 1 of the last line, f <= sum over its stages of
  gain = f * (x * (1/L - k (f/n) (seconds per pass and layer)) - k (f/n) hop) / (1 - k).
Dual values per device that cover the gain of every group bound the whole pipeline.
"""

from dataclasses import dataclass

import numpy as np

from planner.bounds.flow_boxes import FlowBoxes, NDBool
from planner.bounds.group_rates import GroupRates
from planner.bounds.large_groups import PRICES, LargeGroups
from planner.cost.roofline import least_row_bytes
from planner.problem import Numbers

TINY = 1e-9


@dataclass(frozen=True, eq=False, slots=True)
class DualValues:
    """For each price: counts c can serve in a box only if duals @ c >= need + per_hop_second * way.

    `way`: seconds that the hops of the pipeline take beyond the best hop of each stage.
    """

    duals: Numbers  # [price, box, class]
    need: Numbers  # [price, box]
    per_hop_second: Numbers  # [price, box]
    alone: NDBool  # [box, group]: groups that can serve all layers as one stage


@dataclass(frozen=True, eq=False, slots=True)
class _Terms:
    """What the gains of all groups are made of: [box, group]."""

    boxes: FlowBoxes
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


def dual_values_of(groups: GroupRates, boxes: FlowBoxes) -> DualValues:
    """Work out the dual values in every box."""
    terms = _terms(groups, boxes)
    large_groups = [LargeGroups(groups, boxes, far) for far in groups.far]
    gains = terms.gains(terms.most, terms.hop)
    floor = np.zeros((*gains.shape[:2], groups.counts.shape[1]))
    for large in large_groups:
        floor = np.maximum(floor, large.duals)
    duals = _covering(groups, gains, floor)
    held = duals @ groups.counts.T
    first = held - terms.gains(terms.most_first, terms.hop)
    last = held - terms.gains(terms.most_last, terms.last_hop)
    need = boxes.low_flow + np.zeros(duals.shape[:2])
    for loss in (first.min(axis=2), last.min(axis=2)):
        need += np.minimum.reduce([loss, *(large.least_loss for large in large_groups)])
    per_hop_second = (PRICES / (1 - PRICES))[:, :, 0] * boxes.low_flow * terms.urgency[:, 0]
    return DualValues(duals, need, per_hop_second, _alone(groups, boxes, terms))


def _terms(groups: GroupRates, boxes: FlowBoxes) -> _Terms:
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


def _bridge(groups: GroupRates, batch: Numbers) -> Numbers:
    """Seconds that a group over several regions may save of the ways between them."""
    latency, per_byte = groups.region_links.beyond
    spans = (groups.in_region.sum(axis=1) > 1)[:, None] * groups.in_region
    size = batch[:, None] * least_row_bytes(groups.problem)
    seconds: Numbers = spans @ latency + size * (spans @ per_byte)
    return seconds


def _most_layers(
    groups: GroupRates, boxes: FlowBoxes, per_token: Numbers, head: Numbers, ends: int
) -> Numbers:
    """Most layers of a stage by memory and by time, with so many of the model's ends."""
    model, load = groups.problem.model, groups.problem.workload
    layer = model.layer_bytes + model.kv_bytes * load.context * boxes.low_held[:, None]
    by_memory = np.floor((groups.memory - ends * model.end_bytes) / layer + TINY)
    by_time = np.floor((1 / boxes.low_flow[:, None] - head) / per_token + TINY)
    most: Numbers = np.clip(np.minimum(by_memory, by_time), 0, model.layers)
    return most


def _alone(groups: GroupRates, boxes: FlowBoxes, terms: _Terms) -> NDBool:
    head = groups.head_seconds(boxes.least_batch, boxes.most_batch)
    per_pass = terms.layers * terms.seconds + head
    quick = per_pass * terms.urgency <= 1 + TINY
    per_token = groups.pass_seconds(boxes.most_batch) / boxes.most_batch[:, None]
    whole = _most_layers(groups, boxes, per_token, 0 * per_token, 2) >= terms.layers
    alone: NDBool = quick & whole
    return alone


def _covering(groups: GroupRates, gains: Numbers, floor: Numbers) -> Numbers:
    """Dual values [price, box, class] of at least `floor` that cover the gain of every group."""
    duals = floor.copy()
    single = groups.members == 1
    order = groups.counts[single].argmax(axis=1)
    duals[..., order] = np.maximum(duals[..., order], gains[..., single])
    short = gains > (duals @ groups.counts.T) * (1 + TINY)
    for group in np.flatnonzero(short.any(axis=(0, 1))):
        held, gain = duals @ groups.counts[group], gains[..., group]
        inside = np.flatnonzero(groups.counts[group])
        more = np.where(gain > held, gain / np.maximum(held, 1e-300), 1.0)
        bare = (gain > held) & (held <= 0)
        for kind in inside:
            fair = np.where(bare, gain / groups.members[group], 0.0)
            duals[..., kind] = np.where(bare, fair, duals[..., kind] * more)
    return duals
