"""Relayed links in a plan: hops over them only where needed, groups where all can be dialled."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from planner.best_plan import best_plan
from planner.cost.cost_model import CostModel
from planner.live_problem import RELAYED_SECONDS, live_problem
from planner.problem import Problem
from planner.stop import never
from swarm.errors import DoesNotFit
from swarm.hardware import RELAYED, Link, Links
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import Capability
from tests.planner.test_live_problem import LAYER_BYTES, SPEC, capability

CONTEXT = 64
ENDS = SPEC.embedding_parameters * 4 * 2 + 8 * CONTEXT * SPEC.kv_bytes(8, 4)
Peers = dict[str, Capability]


def peer(
    layers: float, home: str = "", speed: float = 1e9, links: list[Link] | None = None
) -> Capability:
    """A peer on a machine of its own; one with a home stands behind its router, with a relay."""
    offered = capability(layers * LAYER_BYTES + ENDS, speed, links=links)
    host = f"{home}{layers}{speed}"
    if not home:
        return replace(offered, host=host)
    return replace(offered, host=host, reachable=False, relays=["/ip4/192.0.2.1"], home=home)


def problem_of(peers: Peers) -> Problem:
    return live_problem(SPEC, peers, bytes_per_weight=4, bytes_per_value=4, context=CONTEXT)


def relayed_hops(pipeline: Pipeline, peers: Peers) -> int:
    leaders = [stage.shards[0].peer for stage in pipeline.stages]
    ring = itertools.pairwise([*leaders, leaders[0]])
    return sum(Links.of(peers).way(one, other).is_relayed for one, other in ring if one != other)


def chains(peers: Peers) -> Iterator[Pipeline]:
    """Every pipeline of whole layers in which each peer has one stage at most."""
    for count in range(1, len(peers) + 1):
        for names in itertools.permutations(peers, count):
            for cuts in itertools.combinations(range(1, SPEC.layers), count - 1):
                edges = itertools.pairwise((0, *cuts, SPEC.layers))
                shards = ((Shard(f"{name}/0", SPEC.kv_heads, SPEC.mlp_blocks),) for name in names)
                yield Pipeline(
                    tuple(Stage(*edge, each) for edge, each in zip(edges, shards, strict=True))
                )


WORLDS: dict[str, Peers] = {
    "one public host, two homes": {"a": peer(3), "b": peer(3, "B"), "c": peer(4, "C")},
    "a public pair does it": {"a": peer(5), "d": peer(4), "b": peer(5, "B"), "c": peer(5, "C")},
    "quick homes": {"a": peer(5), "d": peer(4), "b": peer(9, "B", 4e9), "c": peer(5, "C", 8e9)},
    "slow public host": {"a": peer(8, speed=2e7), "b": peer(5, "B", 4e9), "c": peer(5, "C", 4e9)},
    "two of one home": {"a": peer(2), "b": peer(4, "B"), "c": peer(5, "B"), "d": peer(5, "D")},
    "homes alone": {"b": peer(5, "B"), "c": peer(5, "C")},
    "a punched link": {
        "b": peer(5, "B"),
        "c": peer(5, "C"),
        "d": peer(5, "D", links=[Link("b", 0.03, 2e6, "punched")]),
    },
    "a measured relay": {
        "a": peer(4),
        "b": peer(4, "B", links=[Link("c", 0.001, 1e8, RELAYED)]),
        "c": peer(5, "C"),
        "d": peer(4),
    },
}


@pytest.mark.parametrize("name", WORLDS)
def test_a_hop_is_relayed_only_where_no_plan_does_without(name: str) -> None:
    peers = WORLDS[name]
    problem = problem_of(peers)
    cost = CostModel(problem)
    fitting = [chain for chain in chains(peers) if not cost.reasons(Plan((chain,)))]
    best = best_plan(problem, never).pipelines[0]
    assert relayed_hops(best, peers) <= min(relayed_hops(chain, peers) for chain in fitting)
    assert cost.latency(best) <= min(map(cost.latency, fitting)) * (1 + 1e-9)


def test_the_commonest_swarm_is_planned_over_its_relay() -> None:
    peers = WORLDS["one public host, two homes"]
    assert relayed_hops(best_plan(problem_of(peers), never).pipelines[0], peers) == 1


def test_a_relayed_link_counts_with_its_measured_figures_and_a_large_surcharge() -> None:
    peers = WORLDS["a measured relay"]
    seconds, rate = problem_of(peers).link(1, 2)
    assert seconds == pytest.approx(RELAYED_SECONDS + 0.0005)
    assert rate == 1e8


def halves(one: Capability, other: Capability) -> Peers:
    """Two peers of which neither holds a layer alone: only a group of both serves the model."""
    size = int(ENDS + SPEC.layers * LAYER_BYTES * 0.6)
    devices = [replace(one.devices[0], memory_bytes=size)]
    return {"a": replace(one, devices=devices), "b": replace(other, devices=devices)}


def grouped(peers: Peers) -> bool:
    problem = problem_of(peers)
    whole = replace(problem, model=replace(problem.model, layers=1))
    heavy = replace(whole.model, attention_parameters=8e5, mlp_parameters=3.2e6)
    try:
        plan = best_plan(replace(whole, model=heavy), never)
    except DoesNotFit:
        return False
    return any(len(stage.shards) == 2 for line in plan.pipelines for stage in line.stages)


def test_a_group_forms_only_where_every_member_can_be_dialled() -> None:
    assert grouped(halves(peer(1), peer(2)))
    assert grouped(halves(peer(1, "B"), peer(2, "B")))
    assert not grouped(halves(peer(1, "B"), peer(2, "C")))
    assert not grouped(halves(peer(1), peer(2, "C")))
    near = peer(1, "B"), replace(peer(2), home="B")
    assert grouped(halves(*near))
    same = replace(peer(1), reachable=False), replace(peer(2), reachable=False)
    assert grouped(halves(*(replace(each, host="one") for each in same)))
