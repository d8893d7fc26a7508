"""How often a plan changes, and what devices drop for it, when peers come, go and waver."""

import time
from dataclasses import replace
from pathlib import Path

from tests.node.memberships import SPEC
from tests.node.virtual_swarm import SPEED, VirtualSwarm, run

HALF, WHOLE = 6.0, 12.0  # layers of memory: half of the model with KV, and all of it
LAYERS = set(range(SPEC.layers))
SETTLED_SECONDS = 45.0


def test_each_loss_and_return_changes_the_plan_once_and_drops_no_shard(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.begin("abcd", HALF)
        for _ in range(2):
            victim = swarm.planner
            began = time.monotonic()
            swarm.kill(victim)
            await swarm.watch(SETTLED_SECONDS)
            assert len(swarm.since(began, "plan")) == 1
            assert not swarm.since(began, "load")
            assert swarm.served() == LAYERS
            began = time.monotonic()
            await swarm.join(victim, HALF)
            await swarm.watch(SETTLED_SECONDS)
            assert len(swarm.since(began, "plan")) == 1
            assert [each.name for each in swarm.since(began, "load")] == [victim]
        began = time.monotonic()
        await swarm.leave(next(name for name in swarm.nodes if name != swarm.planner))
        await swarm.watch(SETTLED_SECONDS)
        assert len(swarm.since(began, "plan")) == 1
        assert not swarm.since(0.0, "unload")

    run(story)


def test_a_planner_killed_every_twenty_seconds_changes_the_plan_once_a_change_at_most(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.join("e", WHOLE)
        await swarm.begin("abcd", HALF)
        began, kills = time.monotonic(), 4
        for _ in range(kills):
            victim = swarm.planner
            swarm.kill(victim)
            await swarm.watch(15.0)
            assert swarm.served() == LAYERS
            await swarm.join(victim, WHOLE if victim == "e" else HALF)
            await swarm.watch(5.0)
        await swarm.watch(SETTLED_SECONDS)
        assert len(swarm.since(began, "plan")) <= 2 * kills
        assert len(swarm.since(began, "load")) <= kills  # each that came back loads its own
        assert not swarm.since(0.0, "unload")

    run(story)


def test_two_pipelines_that_each_lost_a_stage_become_one_of_their_halves(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.begin("abcd", HALF)
        first, second = swarm.nodes["a"].plan.pipelines  # type: ignore[union-attr]
        names = {made.peer: name for name, made in swarm.nodes.items()}
        victims = [first.stages[0].shards[0].peer, second.stages[1].shards[0].peer]
        began = time.monotonic()
        for victim in victims:
            swarm.kill(names[victim])
        await swarm.watch(SETTLED_SECONDS)
        assert swarm.served() == LAYERS
        assert len(swarm.since(began, "plan")) == 1
        assert not swarm.since(began, "load")
        assert not swarm.since(began, "unload")

    run(story)


def test_a_whole_pipeline_serves_on_while_what_is_left_of_another_has_no_use(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.join("a", WHOLE)
        await swarm.begin("bc", HALF)
        began = time.monotonic()
        await swarm.leave(next(name for name in "bc" if name != swarm.planner))
        while time.monotonic() - began < SETTLED_SECONDS:
            assert swarm.served() == LAYERS
            await swarm.watch(0.5)
        assert len(swarm.since(began, "plan")) == 1
        assert not swarm.since(began, "unload")

    run(story)


def test_a_node_that_is_restarted_again_and_again_is_used_within_seconds(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.begin("abc", WHOLE)
        victim = next(name for name in swarm.nodes if name != swarm.planner)
        for _ in range(3):
            swarm.kill(victim)
            await swarm.watch(8.0)
            came = time.monotonic()
            back = await swarm.join(victim, WHOLE)
            while back.device.shard is None:
                await swarm.watch(0.5)
                assert time.monotonic() - came < 20.0

    run(story)


def test_what_is_left_of_the_only_pipeline_waits_for_the_rest_to_come_back(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.begin("ab", HALF)
        victim = next(name for name in swarm.nodes if name != swarm.planner)
        swarm.kill(victim)
        await swarm.watch(200.0)  # its records are gone, so that no plan has a part for it
        began = time.monotonic()
        await swarm.join(victim, HALF)
        await swarm.watch(SETTLED_SECONDS)
        assert swarm.served() == LAYERS
        assert [each.name for each in swarm.since(began, "load")] == [victim]
        assert not swarm.since(0.0, "unload")

    run(story)


def test_a_node_that_is_back_before_it_was_missed_changes_no_plan(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.begin("ab", HALF)
        victim = next(name for name in swarm.nodes if name != swarm.planner)
        began = time.monotonic()
        swarm.kill(victim)
        await swarm.watch(1.0)
        await swarm.join(victim, HALF)
        await swarm.watch(10.0)
        assert swarm.served() == LAYERS
        assert [each.name for each in swarm.since(began, "load")] == [victim]
        await swarm.watch(SETTLED_SECONDS)
        assert not swarm.since(began, "plan")

    run(story)


def test_reachability_that_comes_and_goes_and_figures_that_waver_change_no_plan(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.begin("abcd", HALF)
        began = time.monotonic()
        for number in range(12):
            for name, made in swarm.nodes.items():
                device = made.node._announcer.capability.devices[0]  # type: ignore[union-attr]
                speed = SPEED * (1.1 if (number + ord(name)) % 2 else 0.9)
                wavering = replace(device, bytes_per_second=speed)
                made.say(devices=[wavering], reachable=name != "a" or number % 2 == 1)
            await swarm.watch(5.0)
        assert not swarm.since(began, "plan")
        await swarm.watch(400.0)  # past the dwell time, when a better plan may be taken
        assert not swarm.since(began, "plan")
        assert not swarm.since(began, "unload")

    run(story)


def test_a_peer_that_answers_others_but_not_the_planner_costs_nobody_a_shard(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        swarm = VirtualSwarm(tmp_path)
        await swarm.begin("abcd", HALF)
        planner = swarm.nodes[swarm.planner]
        other = next(made for made in swarm.nodes.values() if made is not planner)
        swarm.world.cut(planner.peer, other.peer)
        await swarm.watch(90.0)
        assert swarm.served() == LAYERS
        swarm.world.heal(planner.peer, other.peer)
        await swarm.watch(90.0)
        assert not swarm.since(0.0, "unload")
        assert sum(made.plans for made in swarm.nodes.values()) == 1

    run(story)
