"""filled_pipeline: a greedy pipeline for many devices: the nearest and fastest, filled in turn."""

import numpy as np

from planner.criterion import latency_criterion
from planner.exact import least_latency_pipeline
from planner.problem import Problem
from planner.shares import Group, least_seconds, share_out
from swarm.plan import Pipeline, Stage

FEW = 8  # devices that exact search takes on together


def filled_pipeline(problem: Problem, free: list[int]) -> Pipeline | None:
    """A pipeline of few near devices if they hold the model, else a long chain, else None."""
    for seed in _by_speed(problem, free)[:3]:
        near = _by_distance(problem, seed, free)
        pipeline = least_latency_pipeline(problem, near[:FEW])
        if pipeline is not None:
            return pipeline
        pipeline = _chain(problem, near)
        if pipeline is not None:
            return pipeline
    return None


def _by_speed(problem: Problem, free: list[int]) -> list[int]:
    return sorted(free, key=lambda d: -problem.devices[d].bytes_per_second)


def _by_distance(problem: Problem, seed: int, free: list[int]) -> list[int]:
    def key(device: int) -> tuple[float, float]:
        return problem.link(seed, device)[0], -problem.devices[device].bytes_per_second

    return [seed, *sorted((d for d in free if d != seed), key=key)]


def _chain(problem: Problem, order: list[int]) -> Pipeline | None:
    """Every device filled with layers in turn until all are placed."""
    criterion, layers = latency_criterion(problem), problem.model.layers
    every = np.arange(1.0, layers + 1)
    stages: list[Stage] = []
    at = 0
    for device in order:
        first = at == 0
        ending = np.isfinite(
            least_seconds(problem, Group((device,), first, True), criterion, every)
        )
        inside = np.isfinite(least_seconds(problem, Group((device,), first), criterion, every))
        if ending[layers - at - 1]:
            group, count = Group((device,), first, True), layers - at
        else:
            group, count = Group((device,), first), min(int(inside.sum()), layers - at - 1)
        if count:
            stages.append(Stage(at, at + count, share_out(problem, group, criterion, count)))
            at += count
        if at == layers:
            return Pipeline(tuple(stages))
    return None
