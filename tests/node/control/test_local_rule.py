"""While nobody plans, idle devices take what nobody serves; not all of them, and not at once."""

import time
from pathlib import Path

import pytest

from node.control.local_rule import PAUSE_SECONDS, RANK_SECONDS, first_gap
from swarm.plan import Assignment, Shard, Stage
from swarm.records import Advert, Member, StageAdvert
from tests.node.control.test_plan_changes import HALF, LAYERS, WHOLE
from tests.node.memberships import SPEC
from tests.node.virtual_swarm import LOAD_SECONDS, VirtualSwarm, run

LOADED_SECONDS = PAUSE_SECONDS + 30.0  # with looks at the board and the time to load


@pytest.mark.parametrize(
    ("spans", "gap"),
    [
        ([], (0, 8)),
        ([(0, 4)], (4, 8)),
        ([(4, 8)], (0, 4)),
        ([(0, 2), (1, 3), (5, 8)], (3, 5)),
        ([(0, 1), (2, 3)], (1, 2)),
        ([(0, 4), (4, 8)], None),
        ([(0, 99)], None),
    ],
)
def test_the_first_gap_is_what_nobody_serves(
    spans: list[tuple[int, int]], gap: tuple[int, int] | None
) -> None:
    adverts = [
        Advert(SPEC.digest, [StageAdvert(start, end, [Member("a", 0, 8, 8)], 0.1, 9, 0)], 1)
        for start, end in spans
    ]
    assert first_gap(SPEC.layers, adverts) == gap


def test_idle_devices_serve_all_layers_though_nobody_may_plan(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path, key="")
        for name in "abcd":
            await swarm.join(name, HALF)
        await swarm.watch(LOADED_SECONDS)
        assert swarm.served() == LAYERS
        await swarm.watch(4 * RANK_SECONDS)
        first, second = swarm.since(0.0, "load")
        assert (first.layers, second.layers) == ("[0,4)", "[4,8)")  # once the first ones are served
        assert second.at > first.at + LOAD_SECONDS
        assert not swarm.since(0.0, "unload")

    run(story)


def test_a_spare_takes_the_layers_of_a_lost_peer_without_a_planner(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path, key="")
        await swarm.join("a", WHOLE)
        await swarm.watch(LOADED_SECONDS)
        for name in "bc":
            await swarm.join(name, WHOLE)
        await swarm.watch(LOADED_SECONDS)
        assert [each.name for each in swarm.since(0.0, "load")] == ["a"]
        swarm.kill("a")
        began = time.monotonic()
        await swarm.watch(60.0 + LOADED_SECONDS)  # its records live on for a while
        assert len(swarm.since(began, "load")) == 1
        assert swarm.served() == LAYERS

    run(story)


def test_what_is_taken_without_a_planner_serves_on_when_somebody_plans(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.begin("a", WHOLE)
        device = swarm.nodes["a"].device
        shard = Shard(device.id, SPEC.kv_heads, SPEC.mlp_blocks)
        store = swarm.nodes["a"].node._plan_store
        assert store.assignment_of(device.id) == Assignment(Stage(0, 8, (shard,)), 0)
        store.own_parts["other/0"] = Assignment(Stage(0, 8, (shard,)), 0)
        await swarm.watch(10.0)
        assert not store.own_parts
        assert not swarm.since(0.0, "unload")

    run(story)
