"""Large groups: groups too large to be listed one by one, bounded device by device."""

import numpy as np

from planner.bounds.flow_boxes import FlowBoxes
from planner.bounds.group_rates import FarGroups, GroupRates, decode_parts, prefill_parts
from planner.cost.roofline import Speeds, least_row_bytes
from planner.problem import Numbers

_PRICES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)
PRICES = np.array(_PRICES)[:, None, None]  # of the time of a pass through all stages


class LargeGroups:
    """Dual values of devices that cover the gain of every such group; see `dual_values`.

    A device brings a group layers in proportion to its memory or its speed, and the group takes
    at least the seconds of the fastest devices and of its all-reduces.
    """

    def __init__(self, groups: GroupRates, boxes: FlowBoxes, far: FarGroups) -> None:
        self.groups, self.boxes, self.far = groups, boxes, far
        model, load = groups.problem.model, groups.problem.workload
        kinds = groups.available.kinds
        self._speeds = (
            np.array([kind.device.bytes_per_second for kind in kinds]),
            np.array([kind.device.flops for kind in kinds]),
        )
        layer = model.layer_bytes + model.kv_bytes * load.context * boxes.low_held[:, None]
        self._by_memory = np.array([kind.memory for kind in kinds]) / layer
        self._by_time = self._layers_by_time(boxes.most_batch)
        cost = PRICES * (boxes.low_flow / boxes.high_held)[:, None]
        self._slope = 1 / model.layers - cost * self._least_seconds(boxes.least_batch)
        self._saved = cost * self._bridge(boxes.least_batch)

    @property
    def duals(self) -> Numbers:
        """What a device adds to any such group: [price, box, class].

        A group whose layers cost more than they bring has one at least, and saves ways.
        """
        most = np.minimum(self._by_memory, self._by_time)
        saved = np.maximum(np.minimum(self._slope, 0.0) + self._saved, 0.0) / self.far.least_members
        inner = most * np.maximum(self._slope, 0.0) + saved
        duals: Numbers = self.boxes.high_flow[:, None] * inner / (1 - PRICES)
        return duals

    @property
    def least_loss(self) -> Numbers:
        """By how much an end lowers such a group, at least: [price, box].

        It takes memory, if that binds every class; a group that costs more than it brings is one
        of the ends all the same.
        """
        binds = (self._by_memory <= self._by_time).all(axis=1)
        model, load = self.groups.problem.model, self.groups.problem.workload
        layer = model.layer_bytes + model.kv_bytes * load.context * self.boxes.high_held
        lost = model.end_bytes / layer * np.maximum(self._slope.min(axis=2), 0.0)
        costs = np.maximum(-(self._slope + self._saved).max(axis=2), 0.0)
        loss = self.boxes.low_flow * (np.where(binds, lost, 0.0) + costs)
        whole: Numbers = loss / (1 - PRICES[:, :, 0])
        return whole

    def _layers_by_time(self, batch: Numbers) -> Numbers:
        """Layers of a device at most, so that those of a group are at most their sum.

        Reading a / sum r and arithmetic c / sum s of a group take at least
        (a/R + c/S)^2 / sum(a r/R^2 + c s/S^2) seconds for any R, S (Cauchy).
        """
        problem, one = self.groups.problem, Speeds(np.ones(1), np.ones(1))
        counts = np.array(self.groups.available.counts, dtype=float)
        whole = [float(speed @ counts) for speed in self._speeds]
        decode = decode_parts(problem, batch[:, None], one)
        prompt = prefill_parts(problem, one)
        allreduce = self._allreduce_seconds(batch, self.far.least_members) / batch[:, None]
        best = np.full_like(self._by_memory, np.inf)
        for i in (0, 1):
            for j in (0, 1):
                work = [np.zeros((len(batch), 1)), np.zeros((len(batch), 1))]
                work[i] = work[i] + decode[i] / batch[:, None]
                work[j] = work[j] + prompt[j]
                spent = sum(w / v for w, v in zip(work, whole, strict=True))
                parts = zip(work, self._speeds, whole, strict=True)
                speed = sum(w * s / v**2 for w, s, v in parts)
                seconds = allreduce + spent**2 / np.maximum(speed, 1e-300)
                best = np.minimum(best, 1 / (self.boxes.low_flow[:, None] * seconds))
        return best

    def _allreduce_seconds(self, batch: Numbers, members: int) -> Numbers:
        size = np.array([float(members)])
        return self.groups.allreduce_seconds(batch, size, (self.far.latency, self.far.bandwidth))

    def _least_seconds(self, batch: Numbers) -> Numbers:
        """Seconds of a layer in a pass, for the best group that a class could be in."""
        problem, counts = self.groups.problem, self.groups.available.counts
        fastest = [np.sort(np.repeat(s, counts))[::-1].cumsum() for s in self._speeds]
        best = np.full_like(self._by_memory, np.inf)
        for members in range(self.far.least_members, sum(counts) + 1):
            whole = Speeds(*(speed[members - 1 : members] for speed in fastest))
            work = np.maximum(*decode_parts(problem, batch[:, None], whole))
            work = work + batch[:, None] * np.maximum(*prefill_parts(problem, whole))
            best = np.minimum(best, work + self._allreduce_seconds(batch, members))
        return best

    def _bridge(self, batch: Numbers) -> Numbers:
        """Seconds of ways out of regions that such a group may save its pipeline."""
        if not self.far.spans:
            return np.zeros((len(batch), 1))
        latency, per_byte = self.groups.region_links.beyond
        size = least_row_bytes(self.groups.problem) * batch[:, None]
        saved: Numbers = latency.sum() + size * per_byte.sum()
        return saved
