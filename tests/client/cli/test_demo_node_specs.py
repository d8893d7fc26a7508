"""The demo's nodes: whatever their speeds, only one kind of plan fits them."""

import random
from dataclasses import replace

import pytest

from client.cli.demo_nodes import node_specs_of
from node.control.next_plan import next_plan
from swarm.checkpoint.folder import find_model, read_spec
from swarm.errors import BadModel
from swarm.hardware import Device, Link
from swarm.model_spec import BUILT_IN, ModelSpec
from swarm.records import Capability

SPEC = read_spec(find_model(BUILT_IN), BUILT_IN)


def capabilities(spec: ModelSpec, seed: int) -> dict[str, Capability]:
    chance = random.Random(seed)
    names = [node.name for node in node_specs_of(spec)]
    return {
        node.name: Capability(
            "m",
            [
                Device(
                    0,
                    "cpu",
                    "cpu",
                    node.memory_bytes,
                    chance.uniform(1e9, 2e10) / node.slowdown,
                    chance.uniform(1e10, 1e11) / node.slowdown,
                )
            ],
            [
                Link(name, chance.uniform(1e-4, 5e-3), chance.uniform(1e7, 1e9))
                for name in names
                if name != node.name
            ],
            "host",
            True,
            0.0,
            name=node.name,
        )
        for node in node_specs_of(spec)
    }


@pytest.mark.parametrize("seed", range(4))
def test_every_plan_has_unlike_stages_and_an_uneven_split(seed: int) -> None:
    plan, reason = next_plan(SPEC, capabilities(SPEC, seed), None)
    assert not reason
    (pipeline,) = plan.pipelines
    assert len({stage.layers for stage in pipeline.stages}) >= 2
    uneven = [stage for stage in pipeline.stages if len({shard.kv for shard in stage.shards}) > 1]
    assert [sorted(shard.kv for shard in stage.shards) for stage in uneven] == [
        [SPEC.kv_heads * 3 // 8, SPEC.kv_heads * 5 // 8]
    ]
    assert len(list(plan.shards())) == 4


@pytest.mark.parametrize("missing", range(4))
def test_three_of_the_four_are_not_enough(missing: int) -> None:
    there = capabilities(SPEC, 1)
    del there[list(there)[missing]]
    plan, reason = next_plan(SPEC, there, None)
    assert not plan.pipelines
    assert "are missing" in reason


def test_a_model_that_is_too_small_to_show_is_refused() -> None:
    with pytest.raises(BadModel, match="too small"):
        node_specs_of(replace(SPEC, kv_heads=4))
