"""Regroup: all devices of one speed are dealt into groups of one size where that pays."""

from pathlib import Path

from planner.cost.cost_model import CostModel
from planner.instance.cluster_file import read_file, read_instance
from planner.make_plan import make_plan, never
from planner.search.group_pool import Pool
from planner.search.local_search import Goal
from planner.search.operators import Layout
from planner.search.regroup import regrouped


def one_pipeline_of_single_devices(goal: Goal) -> Layout:
    atoms = [goal.pool.atom([device]) for device in goal.pool.devices]
    return Layout((tuple(atom for atom in atoms if atom is not None),))


def test_many_small_devices_pair_up_and_keep_every_device(cluster_file: Path) -> None:
    file = read_file(cluster_file)
    problem = read_instance(file, "helix-hetero-42-70b", "throughput").problem
    goal = Goal(Pool(problem, CostModel(problem)), "throughput")
    before = one_pipeline_of_single_devices(goal)
    after = regrouped(goal.pool, goal.worth, before)
    assert goal.total(after) > goal.total(before) * 1.1
    served = sorted(member for atom in after.parts[0] for member in atom.members)
    assert served == list(goal.pool.devices)
    assert any(len(atom.members) > 1 for atom in after.parts[0])


def test_a_large_pool_is_planned_as_well_as_a_longer_search_once_did(cluster_file: Path) -> None:
    file = read_file(cluster_file)
    problem = read_instance(file, "helix-hetero-42-70b", "throughput").problem
    plan = make_plan(problem, never)
    cost = CostModel(problem)
    assert cost.reasons(plan) == []
    assert cost.total_throughput(plan) > 2900
