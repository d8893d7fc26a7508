"""A plan must speak of our model and of devices that are there; a lease, of a credible term."""

import asyncio
import time
from dataclasses import replace

import pytest

from node.control.next_plan import PlanDocument, problem_with
from swarm.election import TERM_JUMP
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import Lease
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.node.memberships import LAYER_BYTES, SPEC, capability_of, look, membership_of

WHOLE = Plan((Pipeline((Stage(0, 8, (Shard("a/0", 8, 8),)),)),))
DOCUMENT = PlanDocument(WHOLE, 1, "a", SPEC.digest)
PEERS = {"a": capability_of(), "b": capability_of(LAYER_BYTES)}


def problem(document: PlanDocument) -> str:
    return problem_with(document, PEERS, spec=SPEC)


def test_a_plan_for_our_model_is_possible() -> None:
    assert problem(DOCUMENT) == ""


@pytest.mark.parametrize(
    "stage",
    [
        Stage(0, 7, (Shard("a/0", 8, 8),)),  # lacks a layer
        Stage(0, 8, (Shard("a/0", 7, 8),)),  # lacks a KV head
        Stage(0, 8, (Shard("a/0", 8, 8), Shard("b/0", 0, 1))),  # one block too many
    ],
)
def test_a_plan_for_other_dimensions_is_not(stage: Stage) -> None:
    plan = Plan((Pipeline((stage,)),))
    assert problem(replace(DOCUMENT, plan=plan))


def test_a_plan_for_another_model_is_not() -> None:
    assert "another model" in problem(replace(DOCUMENT, model="another"))


@pytest.mark.parametrize("device", ["nobody/0", "a/1"])
def test_a_plan_with_devices_of_nobody_is_not(device: str) -> None:
    plan = Plan((Pipeline((Stage(0, 8, (Shard(device, 8, 8),)),)),))
    assert "nobody knows" in problem(replace(DOCUMENT, plan=plan))


def test_a_plan_that_gives_a_device_more_than_it_holds_is_not() -> None:
    fits = Plan(
        (Pipeline((Stage(0, 1, (Shard("b/0", 8, 8),)), Stage(1, 8, (Shard("a/0", 8, 8),)))),)
    )
    assert problem(replace(DOCUMENT, plan=fits)) == ""
    plan = Plan(
        (Pipeline((Stage(0, 2, (Shard("b/0", 8, 8),)), Stage(2, 8, (Shard("a/0", 8, 8),)))),)
    )
    assert "too little memory" in problem(replace(DOCUMENT, plan=plan))


def test_a_lease_of_an_absurd_term_makes_nobody_stand_by() -> None:
    async def story() -> None:
        world = MemoryWorld()
        liar = peer_named("liar")
        membership_of(world, "liar")  # it answers
        await world.board(liar).publish(capability_of())
        await world.board(liar).publish(Lease(TERM_JUMP + 1, time.time() + 10))
        seen = membership_of(world, "me")
        await look(seen)
        assert seen.holders() == ()
        seen.verified_term = 1
        assert [holder.peer for holder in seen.holders()] == [liar]

    asyncio.run(story())
