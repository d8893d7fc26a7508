"""Group rates: every set of alike devices that may serve a stage, at its best; ground of the bound.

A group is a count of each device class. Arrays run over groups [group] or over batches and groups
[batch, group].
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.bounds.device_counts import Counts, DeviceCounts, regions_of
from planner.bounds.device_rates import NEVER, Kind, least_allreduce_seconds
from planner.cost.roofline import (
    Pass,
    Speeds,
    decode_pass,
    head_part,
    layer_part,
    least_row_bytes,
    prefill_pass,
)
from planner.problem import Numbers, Problem

MOST_GROUPS = 40  # told apart; larger groups over machines are bounded together


@dataclass(frozen=True, eq=False, slots=True)
class RegionLinks:
    """The best way out of each region, and by how much it is worse than those inside.

    Latency and seconds per byte, [region]. `beyond` is what a hop out of the region takes more
    than any device's best hop to another machine.
    """

    latency: Numbers
    per_byte: Numbers
    beyond: tuple[Numbers, Numbers]


def region_links_of(problem: Problem, available: DeviceCounts) -> RegionLinks:
    """Look for the ways out of every region."""
    region = np.array(regions_of(problem))
    names = sorted(set(available.regions))
    ways, beyond = np.zeros((2, len(names))), np.zeros((2, len(names)))
    for i, name in enumerate(names if len(names) > 1 else []):
        way = np.ix_(region == name, region != name)
        kinds = [k for k, r in zip(available.kinds, available.regions, strict=True) if r == name]
        ways[:, i] = problem.latency[way].min(), 1 / problem.bandwidth[way].max()
        worst = (max(k.outside[0] for k in kinds), 1 / min(k.outside[1] for k in kinds))
        beyond[:, i] = np.maximum(ways[:, i] - worst, 0.0)
    return RegionLinks(ways[0], ways[1], (beyond[0], beyond[1]))


@dataclass(frozen=True, eq=False, slots=True)
class FarGroups:
    """All groups over machines of some size or more, in one region or over several.

    Latency and bandwidth [class] are at best those of a group's worst pair, if the class is in it.
    """

    least_members: int
    spans: bool  # several regions
    latency: Numbers
    bandwidth: Numbers


@dataclass(frozen=True, eq=False)
class GroupRates:
    """What groups hold and how fast they are at best: sums over members, best links."""

    problem: Problem
    available: DeviceCounts
    counts: Numbers  # [group, class]
    memory: Numbers
    speeds: Speeds  # of all members together
    link: tuple[Numbers, Numbers]  # latency, bandwidth between members
    hop: tuple[Numbers, Numbers]  # to the next stage: latency, seconds per byte
    far: tuple["FarGroups", ...]  # those over machines that are not in the arrays
    in_region: Numbers  # 1 if the group has members in the region: [group, region]
    region_links: RegionLinks

    @property
    def members(self) -> Numbers:
        """How many devices each group has."""
        count: Numbers = self.counts.sum(axis=1)
        return count

    def pass_seconds(self, batch: Numbers) -> Numbers:
        """Least seconds of one layer in a pass of each batch, prefills included."""
        work = np.maximum(*decode_parts(self.problem, batch[:, None], self.speeds))
        prompt = np.maximum(*prefill_parts(self.problem, self.speeds))
        return (
            work + batch[:, None] * prompt + self.allreduce_seconds(batch, self.members, self.link)
        )

    def allreduce_seconds(
        self, batch: Numbers, members: Numbers, link: tuple[Numbers, Numbers]
    ) -> Numbers:
        """Seconds of a layer's all-reduces in a pass, prefills included."""
        return least_allreduce_seconds(self.problem, batch[:, None], members, link)

    def head_seconds(self, least: Numbers, most: Numbers) -> Numbers:
        """What the head adds to a pass of the last stage with `least` to `most` sequences."""
        reading, arithmetic = decode_parts(self.problem, most[:, None], self.speeds)
        head = head_part(self.problem.model).work(Pass(least[:, None]))
        read, rows = head.parts(self.speeds)
        least_read: Numbers = np.where(reading >= arithmetic, read, np.minimum(read, rows))
        return least_read

    def hop_seconds(self, batch: Numbers) -> Numbers:
        """Seconds of the hop to the next stage, at least."""
        latency, per_byte = self.hop
        return latency + batch[:, None] * least_row_bytes(self.problem) * per_byte


def decode_parts(problem: Problem, batch: Numbers, speeds: Speeds) -> tuple[Numbers, Numbers]:
    """Seconds of a layer's decode pass by reading and by arithmetic."""
    return layer_part(problem.model).work(decode_pass(problem.workload, batch)).parts(speeds)


def prefill_parts(problem: Problem, speeds: Speeds) -> tuple[Numbers, Numbers]:
    """Seconds of a layer's prefill for each output token, by reading and by arithmetic."""
    load = problem.workload
    reading, arithmetic = layer_part(problem.model).work(prefill_pass(load)).parts(speeds)
    return reading / load.output_tokens, arithmetic / load.output_tokens


def group_rates_of(problem: Problem, available: DeviceCounts) -> GroupRates:
    """All groups within a machine, and over machines up to as many members as can be listed."""
    near, most_near = _listed(available, spans=False)
    wide, most_wide = _listed(available, spans=True)
    listed = list(dict.fromkeys([*near, *wide, *_local_groups(available)]))
    counts = np.array(listed, dtype=float)
    kinds = available.kinds
    used = [[kinds[i] for i, count in enumerate(group) if count] for group in listed]
    ways = [[_best_way(kind) for kind in members] for members in used]
    region_links = region_links_of(problem, available)
    in_region = [_regions_of(available, group) for group in listed]
    links = [_link(available, group, region_links) for group in listed]
    return GroupRates(
        problem,
        available,
        counts,
        counts @ np.array([kind.memory for kind in kinds]),
        Speeds(
            counts @ np.array([kind.device.bytes_per_second for kind in kinds]),
            counts @ np.array([kind.device.flops for kind in kinds]),
        ),
        (np.array([link[0] for link in links]), np.array([link[1] for link in links])),
        (
            np.array([min(way[0] for way in each) for each in ways]),
            np.array([1 / max(way[1] for way in each) for each in ways]),
        ),
        _far_groups(available, region_links, most_near, most_wide),
        np.array(in_region, dtype=float),
        region_links,
    )


def _regions_of(available: DeviceCounts, group: Counts) -> list[bool]:
    """For each region whether a group has members there."""
    regions = {available.regions[i] for i, count in enumerate(group) if count}
    return [region in regions for region in sorted(set(available.regions))]


def _listed(available: DeviceCounts, *, spans: bool) -> tuple[list[Counts], int]:
    """Groups in one region, or over several, up to some size; and that size."""
    most, listed = 0, list[Counts]()
    while most < sum(available.counts):
        more = [
            g
            for g in _of_size(available, most + 1)
            if (sum(_regions_of(available, g)) > 1) == spans
        ]
        if len(listed) + len(more) > MOST_GROUPS:
            break
        listed, most = listed + more, most + 1
    return listed, most


def _of_size(available: DeviceCounts, size: int) -> Iterator[Counts]:
    for chosen in itertools.combinations_with_replacement(range(len(available.counts)), size):
        group = tuple(chosen.count(i) for i in range(len(available.counts)))
        if all(g <= c for g, c in zip(group, available.counts, strict=True)):
            yield group


def _local_groups(available: DeviceCounts) -> list[Counts]:
    """Groups that one machine has."""
    found = {
        group
        for machine in available.machines
        for group in itertools.product(*(range(count + 1) for count in machine))
        if sum(group)
    }
    return sorted(found)


def _far_groups(
    available: DeviceCounts, region_links: RegionLinks, near: int, wide: int
) -> tuple[FarGroups, ...]:
    """What is left beyond so many members, in one region and over several."""
    region = np.array(available.regions)
    counts = np.array(available.counts)
    names = sorted(set(available.regions))
    latency = np.array([kind.outside[0] for kind in available.kinds])
    bandwidth = np.array([kind.outside[1] for kind in available.kinds])
    far = []
    if max(int(counts[region == name].sum()) for name in names) > near:
        far.append(FarGroups(near + 1, False, latency, bandwidth))
    if len(names) > 1 and sum(available.counts) > wide:
        place = np.array([names.index(number) for number in available.regions])
        latency = np.maximum(latency, region_links.latency[place])
        bandwidth = np.minimum(bandwidth, 1 / region_links.per_byte[place])
        far.append(FarGroups(max(wide, 1) + 1, True, latency, bandwidth))
    return tuple(far)


def _best_way(kind: Kind) -> tuple[float, float]:
    ways = [kind.outside] if kind.inside[0] >= NEVER else [kind.inside[:2], kind.outside]
    return min(way[0] for way in ways), max(way[1] for way in ways)


def _link(available: DeviceCounts, group: Counts, region_links: RegionLinks) -> tuple[float, float]:
    """Latency and bandwidth of the group's worst pair, at best."""
    if sum(group) == 1:
        return 0.0, 1.0
    members = [kind for kind, count in zip(available.kinds, group, strict=True) if count]
    latency = max(kind.outside[0] for kind in members)
    bandwidth = min(kind.outside[1] for kind in members)
    in_region = np.array(_regions_of(available, group))
    if in_region.sum() > 1:
        latency = max(latency, float(region_links.latency[in_region].max()))
        bandwidth = min(bandwidth, float(1 / region_links.per_byte[in_region].max()))
    if available.is_local(group):
        latency = min(latency, *(kind.inside[0] for kind in members))
        bandwidth = max(bandwidth, *(kind.inside[1] for kind in members))
    return latency, bandwidth
