"""A plan must speak of our model, and a lease of a credible term."""

import asyncio
import time
from dataclasses import replace

import pytest

from node.neighbourhood import Neighbourhood
from node.planning import PlanDocument, is_possible
from planner.election import TERM_JUMP
from swarm.memory import MemoryWorld, peer_named
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import Lease
from tests.node.neighbours import SPEC

WHOLE = Plan((Pipeline((Stage(0, 8, (Shard("a/0", 8, 8),)),)),))
DOCUMENT = PlanDocument(WHOLE, 1, "a", SPEC.digest)


def test_a_plan_for_our_model_is_possible() -> None:
    assert is_possible(DOCUMENT, SPEC)


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
    assert not is_possible(replace(DOCUMENT, plan=plan), SPEC)


def test_a_plan_for_another_model_is_not() -> None:
    assert not is_possible(replace(DOCUMENT, model="another"), SPEC)


def test_a_lease_of_an_absurd_term_makes_nobody_stand_by() -> None:
    async def story() -> None:
        world = MemoryWorld()
        me, liar = peer_named("me"), peer_named("liar")
        await world.board(liar).publish(Lease(TERM_JUMP + 1, time.time() + 10))
        seen = Neighbourhood("swarm", SPEC.digest, world.board(me), world.channel(me))
        await seen.refresh()
        assert seen.holders() == ()
        seen.verified_term = 1
        assert [holder.peer for holder in seen.holders()] == [liar]

    asyncio.run(story())
