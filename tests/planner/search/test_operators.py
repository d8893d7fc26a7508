"""Even groups: all devices of one speed are regrouped in groups of one size where that pays."""

from pathlib import Path

from planner.best_plan import best_plan
from planner.cost.cost_model import CostModel
from planner.instance.cluster_file import read_file, read_instance
from planner.search.group_pool import GroupPool
from planner.search.local_search import Objective
from planner.search.operators import Partition, with_even_groups
from planner.stop import never


def one_pipeline_of_single_devices(objective: Objective) -> Partition:
    groups = [objective.pool.group([device]) for device in objective.pool.devices]
    return Partition((tuple(group for group in groups if group is not None),))


def test_many_small_devices_pair_up_and_keep_every_device(cluster_file: Path) -> None:
    file = read_file(cluster_file)
    problem = read_instance(file, "helix-hetero-42-70b", "throughput").problem
    objective = Objective(GroupPool(problem, CostModel(problem)), "throughput")
    before = one_pipeline_of_single_devices(objective)
    after = with_even_groups(objective.pool, objective.value, before)
    assert objective.total(after) > objective.total(before) * 1.1
    served = sorted(member for group in after.parts[0] for member in group.members)
    assert served == list(objective.pool.devices)
    assert any(len(group.members) > 1 for group in after.parts[0])


def test_a_large_pool_is_planned_as_well_as_a_longer_search_once_did(cluster_file: Path) -> None:
    file = read_file(cluster_file)
    problem = read_instance(file, "helix-hetero-42-70b", "throughput").problem
    plan = best_plan(problem, never)
    cost = CostModel(problem)
    assert cost.reasons(plan) == []
    assert cost.total_throughput(plan) > 2900
