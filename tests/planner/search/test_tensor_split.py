"""Shares of a stage: whatever group asks, every member holds something or the group is refused."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from planner.cost.criterion import latency_criterion
from planner.problem import Problem
from planner.search.tensor_split import StageMembers, best_split, least_seconds

World = Callable[..., Problem]


@pytest.mark.parametrize("members", [2, 3, 4, 5])
@pytest.mark.parametrize("least_units", [0, 1])
def test_more_members_than_units_are_refused_not_given_nothing(
    world: World, members: int, least_units: int
) -> None:
    problem = world(5, devices=members)
    devices = tuple(replace(d, memory_bytes=4e8) for d in problem.devices)
    model = replace(problem.model, mlp_blocks=2, least_units=least_units)
    problem = replace(problem, devices=devices, model=model)
    group = StageMembers(tuple(range(members)))
    shards = best_split(problem, group, latency_criterion(problem), 2)
    seconds = least_seconds(problem, group, latency_criterion(problem), np.array([2.0]))
    if shards:
        assert [sum(s.kv for s in shards), sum(s.mlp for s in shards)] == [2, 2]
        assert all(min(s.kv, s.mlp) >= least_units for s in shards)
        assert np.isfinite(seconds[0])
    if members > 3:
        assert not shards
        assert np.isinf(seconds[0])
