"""Layers are dealt at the least price: no other division over the same survivors is cheaper."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.cost.cost_model import CostModel
from planner.problem import Problem
from planner.replanning.layer_assignment import (
    EVENNESS,
    AssignmentCase,
    SurvivingStage,
    best_order_and_counts,
    layer_counts,
    pipelines_over,
)
from planner.search.group_pool import GroupPool, value_of

World = Callable[..., Problem]
LAYERS = 6


def random_case(problem: Problem, draw: random.Random) -> AssignmentCase:
    pool = GroupPool(problem, CostModel(problem))
    survivors = []
    for number in range(draw.randint(1, 3)):
        group = pool.group((number,))
        assume(group is not None)
        assert group is not None
        start = draw.randint(0, LAYERS - 1)
        end = draw.randint(start, LAYERS)
        survivors.append(SurvivingStage(group, start, end, draw.choice([0.5, 1.0])))
    most = np.array([[draw.randint(1, LAYERS) for _ in range(4)] for _ in survivors], dtype=float)
    seconds = np.array([draw.choice([0.0, 1.0, 2.0]) for _ in survivors])
    return AssignmentCase(tuple(survivors), most, seconds, draw.choice([0.0, 1.0, 10.0]))


def price_of(case: AssignmentCase, counts: tuple[int, ...]) -> float:
    """What a division costs, counted layer by layer."""
    total, at = 0.0, 0
    for place, (survivor, count) in enumerate(zip(case.survivors, counts, strict=True)):
        end = at + count
        row = 2 * (end == LAYERS) + (at == 0)
        if count > case.most[place, row] and count:
            return float("inf")
        lacking = sum(
            1 - survivor.held_share * (survivor.start <= layer < survivor.end)
            for layer in range(at, end)
        )
        total += case.seconds[place] * count + case.loading * (lacking + EVENNESS * count**2)
        at = end
    return total


@given(st.integers(0, 10**6))
def test_no_other_division_is_cheaper(world: World, seed: int) -> None:
    problem = world(seed, devices=3, layers=LAYERS)
    case = random_case(problem, random.Random(seed))
    divisions = itertools.product(range(LAYERS + 1), repeat=len(case.survivors))
    prices = [price_of(case, d) for d in divisions if sum(d) == LAYERS]
    found = layer_counts(case, LAYERS)
    if not found:
        assert min(prices) == float("inf")
    else:
        assert price_of(case, found) == pytest.approx(min(prices))


@settings(deadline=None)  # the first one loads scipy
@given(st.integers(0, 10**6))
def test_exchanges_never_cost_more_loading(world: World, seed: int) -> None:
    problem = world(seed, devices=3, layers=LAYERS)
    case = random_case(problem, random.Random(seed))
    before, (after, counts) = layer_counts(case, LAYERS), best_order_and_counts(case, LAYERS)
    if before:
        assert sum(counts) == LAYERS
        assert loaded(after, counts) <= loaded(case, before) + 1e-9


def loaded(case: AssignmentCase, counts: tuple[int, ...]) -> float:
    total, at = 0.0, 0
    for survivor, count in zip(case.survivors, counts, strict=True):
        held = sum(survivor.start <= layer < survivor.end for layer in range(at, at + count))
        total += count - survivor.held_share * held
        at += count
    return total


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_remnants_that_hold_all_layers_serve_as_they_are(world: World, objective: str) -> None:
    problem = world(3, devices=2, layers=LAYERS, objective=objective)
    roomy = tuple(replace(device, memory_bytes=4e8) for device in problem.devices)
    problem = replace(problem, devices=roomy)
    pool = GroupPool(problem, CostModel(problem))
    groups = [pool.group((number,)) for number in (0, 1)]
    halves = [(0, 3), (3, LAYERS)]
    survivors = [
        SurvivingStage(a, *half, held_share=1.0)
        for a, half in zip(groups, halves, strict=True)
        if a
    ]
    made = pipelines_over(survivors, LAYERS, objective)
    spans = [[(stage.start, stage.end) for stage in p.stages] for p in made]
    assert halves in spans
    best = max(value_of(pool.cost, pipeline, objective) for pipeline in made)
    assert best >= value_of(pool.cost, made[-1], objective) > 0
