"""A device reloads for plans at most once in a dwell time, as long as what it serves is whole."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from node.device.group_request import GroupRequest, GroupWord
from node.device.local_device import LocalDevice
from node.device.make_before_break import BREAK_SECONDS, DWELL_SECONDS, is_awaited
from node.serving.stage_server import LedStage
from node.worker.messages import Loaded, Unload
from swarm.errors import PeerRefused
from swarm.plan import Assignment, Pipeline, Plan, Shard, Stage
from swarm.records import Advert, Member, StageAdvert
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.node.memberships import SPEC, capability_of, look, membership_of
from tests.node.stands import IdleServer

ME, ANNA = peer_named("me"), peer_named("anna")
LATER = Stage(4, 8, (Shard(f"{ME}/0", 8, 8),))
PLANS = [Assignment(Stage(0, end, (Shard(f"{ME}/0", 8, 8),)), 0) for end in (2, 3, 4, 5)]


class CountingServer(IdleServer):
    """Counts how often it began to serve; a test says what happens while it drains."""

    def __init__(self) -> None:
        self.served = 0
        self.on_drain: Callable[[], None] = lambda: None

    def serve(self, device: int, stage: LedStage) -> None:
        self.served += 1

    async def drain(self, device: int, seconds: float = 0.0) -> None:
        self.on_drain()


class Bench:
    """A device whose worker loads at once, and a plan that a test rewrites."""

    def __init__(self) -> None:
        self.plan: Assignment | None = None
        self.serves = True
        self.unloads = 0
        self.whole_plan = Plan(())
        self.others: list[Advert] | None = []
        self.server = CountingServer()
        worker: Any = SimpleNamespace(ended=asyncio.Event(), order=self._order)
        plan_store = SimpleNamespace(
            assignment_of=lambda _device: self.plan,
            pipeline_of=lambda _device: Pipeline(()),
            plan=self.whole_plan,
        )
        context: Any = SimpleNamespace(
            channel=SimpleNamespace(peer=ME),
            server=self.server,
            plan_store=plan_store,
            folder="",
            store=None,
            quant="",
            host="127.0.0.1",
            reach=None,
            is_serving=lambda _pipeline: self.serves,
            others=lambda _since: self.others,
        )
        self.device = LocalDevice(context, 0, 1, worker)

    def _order(self, order: object) -> None:
        self.unloads += isinstance(order, Unload)

    async def follow(self, plan: Assignment | None) -> Assignment | None:
        """Hear a plan, do what it asks, and say what the device holds then."""
        self.plan = plan
        for _ in range(2):  # drop, then load
            await self.device.reconcile()
        if (shard_state := self.device.shard_state) and not shard_state.ready:
            self.device.on_answer(Loaded(shard_state.group, 1, 1, 1, 0.1))
        return self.device.shard_state.assignment if self.device.shard_state else None


def test_what_a_plan_gives_back_while_its_sessions_move_away_is_kept_and_served() -> None:
    async def story() -> None:
        bench = Bench()
        await bench.follow(PLANS[0])
        bench.server.on_drain = lambda: setattr(bench, "plan", PLANS[0])
        assert await bench.follow(PLANS[1]) == PLANS[0]
        assert bench.unloads == 0
        assert bench.server.served == 2  # it had stopped taking sessions
        assert not bench.device.dropped_lately

    asyncio.run(story())


TAKEN_OVER = Plan(
    (Pipeline((Stage(0, 4, (Shard(f"{ANNA}/0", 8, 8),)), Stage(4, 8, (Shard(f"{ME}/0", 8, 8),)))),)
)


def served_by(peer: str, start: int, end: int) -> Advert:
    return Advert(SPEC.digest, [StageAdvert(start, end, [Member(peer, 0, 8, 8)], 0, 0, 0)], 1)


def test_layers_that_nobody_else_serves_yet_are_not_dropped_for_another_part() -> None:
    async def story() -> None:
        bench = Bench()
        bench.device._context.plan_store.plan = TAKEN_OVER  # type: ignore[misc]
        first, later = (Assignment(stage, 0) for stage in (PLANS[2].stage, LATER))
        assert await bench.follow(first) == first
        bench.others = None  # it is not known yet
        assert await bench.follow(later) == first
        bench.others = [served_by("bert", 4, 8)]
        assert await bench.follow(later) == first
        assert bench.device.gives_way
        bench.others.append(served_by(ANNA, 0, 4))
        assert await bench.follow(later) == later
        assert not bench.device.gives_way

    asyncio.run(story())


def test_others_have_some_time_to_load_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        bench = Bench()
        bench.device._context.plan_store.plan = TAKEN_OVER  # type: ignore[misc]
        first, later = (Assignment(stage, 0) for stage in (PLANS[2].stage, LATER))
        await bench.follow(first)
        bench.others = [served_by("bert", 4, 8)]
        assert await bench.follow(later) == first
        after = time.monotonic() + BREAK_SECONDS + 1
        clock = SimpleNamespace(monotonic=lambda: after)
        monkeypatch.setattr("node.device.make_before_break.time", clock)
        assert await bench.follow(later) == later

    asyncio.run(story())


@pytest.mark.parametrize(
    ("others", "awaited"),
    [
        ([(4, 8)], True),
        ([], False),  # where layers are missing, nobody loses anything
        ([(0, 4), (4, 8)], False),
        ([(1, 8)], True),
    ],
)
def test_a_stage_is_awaited_while_all_is_served_and_others_still_load(
    others: list[tuple[int, int]], awaited: bool
) -> None:
    adverts = [served_by("bert", start, end) for start, end in others]
    assert is_awaited(PLANS[2].stage, TAKEN_OVER, adverts) == awaited
    assert not is_awaited(PLANS[2].stage, Plan(()), adverts)


def test_plan_after_plan_makes_a_device_reload_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        bench = Bench()
        assert await bench.follow(PLANS[0]) == PLANS[0]
        assert await bench.follow(PLANS[1]) == PLANS[1]
        for plan in (PLANS[2], None, PLANS[3]):
            assert await bench.follow(plan) == PLANS[1]
        assert bench.unloads == 1
        later = time.monotonic() + DWELL_SECONDS + 1
        monkeypatch.setattr(
            "node.device.make_before_break.time", SimpleNamespace(monotonic=lambda: later)
        )
        assert await bench.follow(PLANS[3]) == PLANS[3]

    asyncio.run(story())


def test_a_dwell_time_protects_no_part_that_fails_to_serve() -> None:
    async def story() -> None:
        bench = Bench()
        for plan in PLANS[:2]:
            await bench.follow(plan)
        bench.serves = False
        assert await bench.follow(PLANS[2]) == PLANS[2]

    asyncio.run(story())


def test_a_leader_cannot_take_a_shard_that_is_kept() -> None:
    async def story() -> None:
        bench = Bench()
        for plan in PLANS[:2]:
            await bench.follow(plan)
        bench.plan = replace(PLANS[2], stage=replace(PLANS[2].stage, end=6))
        request = GroupRequest.of(GroupWord.PREPARE, "g", bench.plan, ())
        with pytest.raises(PeerRefused, match="kept for a while"):
            await bench.device.called(ME, request)

    asyncio.run(story())


def test_a_pipeline_serves_while_its_peers_are_there_and_advertise_it() -> None:
    line = Pipeline(
        (Stage(0, 3, (Shard(f"{ME}/0", 8, 8),)), Stage(3, 8, (Shard(f"{ANNA}/0", 8, 8),)))
    )

    def advert(peer: str, start: int, end: int) -> Advert:
        return Advert(SPEC.digest, [StageAdvert(start, end, [Member(peer, 0, 8, 8)], 0, 0, 0)], 1)

    async def story() -> None:
        world = MemoryWorld()
        view = membership_of(world, "me")
        membership_of(world, "anna")
        view.reads_adverts = True
        for peer, start, end in ((ME, 0, 3), (ANNA, 3, 8)):
            await world.board(peer).publish(capability_of())
            await world.board(peer).publish(advert(peer, start, end))
        await look(view)
        assert view.is_serving(line)
        await world.board(ANNA).publish(advert(ANNA, 3, 7))
        await look(view)
        assert not view.is_serving(line)
        await world.board(ANNA).publish(advert(ANNA, 3, 8))
        await look(view)
        assert view.is_serving(line)
        world.kill(ANNA)
        for _ in range(2):
            await view.ask_whether_alive([ANNA])
        assert not view.is_serving(line)

    asyncio.run(story())
