"""Parameters reach the search that they are of, and a replan its judgement of what pays."""

from collections.abc import Callable
from dataclasses import replace

from planner import Problem, SearchParams, make_plan, never
from planner.cost.cost_model import CostModel
from planner.hexgen.genetic_search import hexgen_start
from planner.replanning.replan import thin_layers
from planner.search.group_pool import GroupPool
from planner.search.latency_search import neighbourhoods
from planner.search.local_search import Objective, best_partition
from swarm.plan import Pipeline, Plan, Shard, Stage

World = Callable[..., Problem]
DEFAULT = SearchParams()


def pool_of(problem: Problem, params: SearchParams = DEFAULT) -> GroupPool:
    return GroupPool(problem, CostModel(problem), params=params)


def test_a_pool_without_some_devices_keeps_the_parameters(world: World) -> None:
    params = replace(DEFAULT, local=replace(DEFAULT.local, patience=3))
    problem = world(3, devices=3)
    assert pool_of(problem, params).without([problem.devices[0].id]).params is params


def test_a_plan_of_less_patience_is_worth_no_more(world: World) -> None:
    problem = world(7, devices=5, layers=4, objective="throughput")
    local = replace(DEFAULT.local, patience=0, patience_per_pipeline=0, most_starts=1)
    hasty = make_plan(problem, never, params=replace(DEFAULT, local=local))
    assert 0 < hasty.value <= make_plan(problem, never).value


def test_no_patience_means_no_try(world: World) -> None:
    problem = world(7, devices=8, layers=6, objective="throughput")
    work = []
    for patience in (0, 300):
        local = replace(DEFAULT.local, patience=patience, patience_per_pipeline=0)
        pool = pool_of(problem, replace(DEFAULT, local=local))
        best_partition(Objective(pool, "throughput"), [], never, 0)
        work.append(pool.work)
    assert work[0] < work[1]


def test_a_start_by_hexgen_can_be_left_out(world: World) -> None:
    problem = world(3, devices=4)
    none = replace(DEFAULT, hexgen=replace(DEFAULT.hexgen, most_devices_to_start=3))
    assert hexgen_start(pool_of(problem, none), "latency", never) == Plan(())
    assert hexgen_start(pool_of(problem), "latency", never) != Plan(())


def test_so_many_neighbourhoods_are_searched_as_asked_for(world: World) -> None:
    problem = world(11, devices=12)
    counts = []
    for most in (1, 3):
        latency = replace(DEFAULT.latency, neighbourhoods=most, neighbourhood_states=8)
        counts.append(
            len(list(neighbourhoods(pool_of(problem, replace(DEFAULT, latency=latency)))))
        )
    assert counts == [1, 3]


def test_what_counts_as_a_short_life_decides_which_layers_are_thin(world: World) -> None:
    problem = world(3, devices=2, layers=4)
    devices = tuple(replace(device, lifetime_seconds=100.0) for device in problem.devices)
    problem = replace(problem, devices=devices)
    plan = Plan((Pipeline((Stage(0, 4, (Shard(devices[0].id, 2, 4),)),)),))
    calm = replace(DEFAULT, replan=replace(DEFAULT.replan, short_life_seconds=50.0))
    assert thin_layers(pool_of(problem), plan) == 4
    assert thin_layers(pool_of(problem, calm), plan) == 0
