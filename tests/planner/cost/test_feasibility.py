"""What cannot be planned is refused with the reason, and with what would help."""

from dataclasses import replace

import pytest

from planner.best_plan import best_plan
from planner.cost.feasibility import smallest_unit_bytes
from planner.problem import Problem
from planner.stop import never
from swarm.errors import DoesNotFit
from tests.planner.conftest import random_world


def world(kv_heads: int, share: float) -> Problem:
    """Ten devices of a share of one layer each: together far more than the model needs."""
    problem = random_world(1, devices=10)
    problem = replace(problem, model=replace(problem.model, kv_heads=kv_heads, least_units=1))
    size = share * smallest_unit_bytes(problem)
    devices = tuple(replace(device, memory_bytes=size) for device in problem.devices)
    return replace(problem, devices=devices)


def test_a_layer_with_one_kv_head_is_named_as_what_no_device_can_share() -> None:
    with pytest.raises(DoesNotFit, match="with one KV head cannot share a layer out") as caught:
        best_plan(world(1, 0.8), never)
    assert "More devices do not help: let one offer" in caught.value.next_step


def test_a_layer_that_as_many_devices_as_kv_heads_cannot_hold_is_named() -> None:
    with pytest.raises(DoesNotFit, match="at most 2 devices can share it, one for each KV head"):
        best_plan(world(2, 0.45), never)
