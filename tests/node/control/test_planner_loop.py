"""PlannerLoop among records that make no sense, and searches that take long."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node.control.eligible_peers import Choice
from node.control.leader_election import LeaderElection
from node.control.membership import Membership, Standing
from node.control.next_plan import PlanDocument
from node.control.plan_store import PlanStore
from node.control.planner_loop import LATEST_SECONDS, PlannerLoop, best_plan
from swarm.hardware import Device, Link
from swarm.model_spec import ModelSpec
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import Capability, Lease, PlanRef
from swarm.testing.clock import settle
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.node.memberships import LAYER_BYTES, MEMBERS, WHOLE, capability_of, look
from tests.node.memberships import SPEC as EIGHT_LAYERS
from tests.node.stands import STRANGER, until

ME = peer_named("me")
SPEC = ModelSpec("m", "digest", "llama", 1, 8, 2, 2, 4, 16, 64, 64, 10, 10)
DEVICE = Device(0, "cpu", "cpu", 1, 1.0, 1.0)
CAPABILITY = Capability(SPEC.digest, [DEVICE], [], "host", True, 0.0)


class Bureau:
    """A planner loop whose node holds the lease."""

    def __init__(self, folder: Path, world: MemoryWorld | None = None) -> None:
        self.world = world or MemoryWorld()
        self.board = self.world.board(ME)
        channel = self.world.channel(ME)
        self.membership = Membership("swarm", SPEC.digest, self.board, channel, MEMBERS)
        self.election = LeaderElection(ME, self.board, self.membership)
        self.plan_store = PlanStore("swarm", folder, channel)
        self.planner_loop = PlannerLoop(
            SPEC, self.board, self.membership, self.election, self.plan_store
        )

    async def open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("node.control.election_policy.SETTLE_SECONDS", 0.0)
        monkeypatch.setattr("node.control.planner_loop.CALM_SECONDS", 0.0)
        await self.board.publish(CAPABILITY)
        await self.membership.refresh()
        await self.election.pursue()
        assert self.election.holds

    async def plans(self) -> list[PlanRef]:
        return list((await self.board.read(PlanRef)).values())


def test_a_record_with_a_device_twice_is_planned_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[set[str]] = []

    def search(
        _spec: ModelSpec, peers: Mapping[str, Capability], *_: object, **__: object
    ) -> object:
        planned.append(set(peers))
        return Plan(()), "a reason"

    monkeypatch.setattr("node.control.planner_loop.next_plan", search)

    async def story() -> None:
        bureau = Bureau(tmp_path)
        await bureau.open(monkeypatch)
        await bureau.world.board(STRANGER).publish(replace(CAPABILITY, devices=[DEVICE, DEVICE]))
        await bureau.membership.refresh()
        assert await bureau.planner_loop.work()
        assert planned == [{ME}]
        assert len(await bureau.plans()) == 1
        assert not await bureau.planner_loop.work()  # nothing has changed
        assert planned == [{ME}]

    asyncio.run(story())


@pytest.mark.parametrize(
    "change", [{"dtype": "bf16"}, {"weight_bytes": 1.3}, {"memory_bytes": 2}, {}]
)
def test_a_peer_whose_devices_hold_something_else_is_planned_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    planned: list[list[Device]] = []

    def search(
        _spec: ModelSpec, peers: Mapping[str, Capability], *_: object, **__: object
    ) -> object:
        planned.append([device for each in peers.values() for device in each.devices])
        return Plan(()), f"reason {len(planned)}"

    monkeypatch.setattr("node.control.planner_loop.next_plan", search)

    async def story() -> None:
        bureau = Bureau(tmp_path)
        await bureau.open(monkeypatch)
        assert await bureau.planner_loop.work()
        changed = replace(DEVICE, bytes_per_second=2.0, **change)  # speeds alone may waver
        await bureau.board.publish(replace(CAPABILITY, devices=[changed]))
        await bureau.membership.refresh()
        assert await bureau.planner_loop.work() == bool(change)
        assert planned == [[DEVICE], [changed]][: 1 + bool(change)]

    asyncio.run(story())


def test_a_search_that_fails_costs_the_plan_only_and_is_not_tried_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def search(*_: object, **__: object) -> object:
        tries.append(1)
        raise ValueError("a record makes no sense")

    monkeypatch.setattr("node.control.planner_loop.next_plan", search)

    async def story() -> None:
        bureau = Bureau(tmp_path)
        await bureau.open(monkeypatch)
        for _ in range(3):
            assert not await bureau.planner_loop.work()
        assert await bureau.plans() == []

    asyncio.run(story())
    assert len(tries) == 1
    assert "no plan could be made" in caplog.text


def test_the_lease_is_renewed_while_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    for name in ("planner_loop", "election_policy"):
        monkeypatch.setattr(f"node.control.{name}.RENEW_SECONDS", 0.01)

    def search(*_: object, **__: object) -> object:
        done.wait(5)
        return Plan(()), "a reason"

    monkeypatch.setattr("node.control.planner_loop.next_plan", search)

    async def story() -> None:
        bureau = Bureau(tmp_path)
        await bureau.open(monkeypatch)
        first = (await bureau.board.read(Lease))[ME].until
        working = asyncio.create_task(bureau.planner_loop.work())
        await until(lambda: bureau.world.records[Lease, ME][0].until > first)  # type: ignore[attr-defined]
        assert not working.done()
        done.set()
        await working
        await settle()
        assert len(await bureau.plans()) == 1

    asyncio.run(story())


class Hand:
    """A clock of the planner loop that a test moves."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_peer_that_changes_every_second_keeps_nobody_unplanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand, planned = Hand(), []

    def search(_spec: ModelSpec, peers: Mapping[str, Capability], *_: object, **__: object) -> Any:
        planned.append((hand.now, set(peers)))
        return Plan(()), f"reason {len(planned)}"

    monkeypatch.setattr("node.control.planner_loop.next_plan", search)
    monkeypatch.setattr("node.control.planner_loop.time", hand)

    async def story() -> None:
        bureau = Bureau(tmp_path)
        await bureau.open(monkeypatch)
        monkeypatch.setattr("node.control.planner_loop.CALM_SECONDS", 1.5)
        stranger = bureau.world.channel(STRANGER)
        stranger.answer("alive", _here)
        for second in range(60):
            changed = replace(DEVICE, memory_bytes=second)
            board = bureau.world.board(STRANGER)
            await board.publish(replace(CAPABILITY, devices=[changed]))
            await look(bureau.membership, everybody=True)
            await bureau.planner_loop.work()
            hand.now += 1.0

    asyncio.run(story())
    assert planned[0][0] <= 1000.0 + LATEST_SECONDS
    assert planned[-1][1] == {ME}  # without the restless one
    assert len(planned) <= 4


def test_newcomers_that_join_one_after_the_other_do_not_put_the_plan_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand, planned = Hand(), []

    def search(*_: object, **__: object) -> Any:
        planned.append(hand.now)
        return Plan(()), f"reason {len(planned)}"

    monkeypatch.setattr("node.control.planner_loop.next_plan", search)
    monkeypatch.setattr("node.control.planner_loop.time", hand)

    async def story() -> None:
        bureau = Bureau(tmp_path)
        await bureau.open(monkeypatch)
        monkeypatch.setattr("node.control.planner_loop.CALM_SECONDS", 1.5)
        for second in range(15):
            newcomer = peer_named(f"newcomer {second}")
            bureau.world.channel(newcomer).answer("alive", _here)
            await bureau.world.board(newcomer).publish(CAPABILITY)
            await look(bureau.membership, everybody=True)
            await bureau.planner_loop.work()
            hand.now += 1.0

    asyncio.run(story())
    assert planned == [1000.0 + LATEST_SECONDS]


FAR = replace(CAPABILITY, host="far")
WAY = Link(ME, 0.04, 2.5e6)  # as a newcomer measured it


@pytest.mark.parametrize("measured_at", [3, 15])
def test_a_plan_waits_for_the_ways_to_a_newcomer_and_is_made_again_when_they_come_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured_at: int
) -> None:
    hand, planned = Hand(), []

    def search(*_: object, may_move: bool, **__: object) -> Any:
        planned.append((hand.now - 1000.0, may_move))
        return Plan(()), f"reason {len(planned)}"

    monkeypatch.setattr("node.control.planner_loop.next_plan", search)
    monkeypatch.setattr("node.control.planner_loop.time", hand)

    async def story() -> None:
        bureau = Bureau(tmp_path)
        await bureau.open(monkeypatch)
        bureau.world.channel(STRANGER).answer("alive", _here)
        for second in range(20):
            links = [WAY] if second >= measured_at else []
            await bureau.world.board(STRANGER).publish(replace(FAR, links=links))
            await look(bureau.membership, everybody=True)
            await bureau.planner_loop.work()
            hand.now += 1.0

    asyncio.run(story())
    early, late = [(3.0, False)], [(LATEST_SECONDS, False), (15.0, True)]
    assert planned == (early if measured_at < LATEST_SECONDS else late)


def test_nobody_waits_for_a_measured_way_when_a_peer_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[set[str]] = []

    def search(_spec: ModelSpec, peers: Mapping[str, Capability], *_: object, **__: object) -> Any:
        planned.append(set(peers))
        return Plan(()), f"reason {len(planned)}"

    monkeypatch.setattr("node.control.planner_loop.next_plan", search)
    monkeypatch.setattr("node.control.planner_loop.time", hand := Hand())

    async def story() -> None:
        bureau = Bureau(tmp_path)
        await bureau.open(monkeypatch)
        other = peer_named("other")
        for peer in (STRANGER, other):
            bureau.world.channel(peer).answer("alive", _here)
            await bureau.world.board(peer).publish(replace(FAR, links=[], host=peer))
        await look(bureau.membership, everybody=True)
        await bureau.planner_loop.work()
        hand.now += LATEST_SECONDS
        await bureau.planner_loop.work()
        await bureau.world.board(other).publish(replace(FAR, devices=[], leaving=True))
        await look(bureau.membership, everybody=True)
        await bureau.planner_loop.work()

    asyncio.run(story())
    assert planned[1:] == [{ME, STRANGER}]


async def _here(_peer: str, _payload: bytes) -> bytes:
    return b""


def test_a_planner_whose_disk_is_full_resigns_before_it_raises_the_term(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "node.control.planner_loop.next_plan", lambda *_, **__: (Plan(()), "a reason")
    )

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    async def story() -> None:
        bureau = Bureau(tmp_path)
        await bureau.open(monkeypatch)
        monkeypatch.setattr("node.control.plan_store.os.fsync", full)
        for _ in range(5):
            assert not await bureau.planner_loop.work()
            assert not await bureau.election.pursue()
        assert not bureau.election.holds
        assert bureau.election.term == 1
        assert await bureau.plans() == []

    asyncio.run(story())


def test_a_planner_that_restarts_goes_on_from_the_plan_that_the_others_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan((Pipeline((Stage(0, 1, (Shard(f"{ME}/0", 2, 2),)),)),))
    gone_on_from: list[Plan | None] = []

    def search(
        _spec: ModelSpec, _peers: object, current: Plan | None, **_: object
    ) -> tuple[Plan, str]:
        gone_on_from.append(current)
        return plan, ""

    monkeypatch.setattr("node.control.planner_loop.next_plan", search)

    async def story() -> None:
        bureau = Bureau(tmp_path)
        await bureau.open(monkeypatch)
        assert await bureau.planner_loop.work()
        await bureau.membership.refresh()
        assert await bureau.plan_store.adopt_latest(bureau.membership)
        await bureau.election.resign()
        follower = bureau.world.channel(STRANGER)
        copy, term = bureau.plan_store.accepted, bureau.plan_store.term
        assert copy is not None
        follower.answer("alive", _says(Standing(term).to_bytes()))
        follower.answer("plan", _says(copy.to_bytes()))
        await bureau.world.board(STRANGER).publish(replace(CAPABILITY, devices=[]))
        restarted = Bureau(tmp_path, bureau.world)
        await restarted.open(monkeypatch)
        await look(restarted.membership)
        assert await restarted.planner_loop.work()

    asyncio.run(story())
    assert gone_on_from == [None, plan]


def _says(answer: bytes) -> Callable[[str, bytes], Awaitable[bytes]]:
    async def say(_peer: str, _payload: bytes) -> bytes:
        return answer

    return say


def test_a_plan_that_others_find_old_is_said_again_under_a_higher_term(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "node.control.planner_loop.next_plan", lambda *_, **__: (Plan(()), "a reason")
    )
    monkeypatch.setattr("node.control.planner_loop.CATCH_UP_SECONDS", -1.0)

    async def story() -> None:
        bureau = Bureau(tmp_path)
        await bureau.open(monkeypatch)
        assert await bureau.planner_loop.work()
        channel = bureau.world.channel(STRANGER)
        other = bureau.world.board(STRANGER)
        trust = bureau.membership._trust
        view = Membership("swarm", SPEC.digest, other, channel, trust)
        view.own = Standing(30)
        await other.publish(replace(CAPABILITY, devices=[]))
        await look(bureau.membership)
        assert await bureau.plan_store.adopt_latest(bureau.membership)
        assert not await bureau.planner_loop.work()  # the newcomer changes nothing in the plan
        assert await bureau.planner_loop.work()
        assert (await bureau.plans())[0].term == 31

    asyncio.run(story())


HONEST = {name: capability_of(5 * LAYER_BYTES, host=name) for name in ("anna", "bert", "carl")}


def peers_of(plan: Plan) -> list[set[str]]:
    """Who has a part in each pipeline."""
    return [{shard.peer for s in each.stages for shard in s.shards} for each in plan.pipelines]


@pytest.mark.parametrize("may_move", [True, False])
def test_no_pipeline_that_serves_is_given_up_for_a_fast_peer_that_has_failed(
    may_move: bool,
) -> None:
    serving, _ = best_plan(EIGHT_LAYERS, Choice(HONEST, {}), None, may_move=False)
    eve = capability_of(10 * LAYER_BYTES, speed=4e13, host="eve")
    able = HONEST | {"eve": eve}
    new, _ = best_plan(EIGHT_LAYERS, Choice(able, {}), serving, may_move=True)
    assert "eve" in peers_of(new)[0]
    trial = Choice(able, {}, frozenset({"eve"}))
    plan, _ = best_plan(EIGHT_LAYERS, trial, serving, may_move=may_move)
    assert plan.pipelines[0] == serving.pipelines[0]
    assert "eve" not in peers_of(plan)[0]


def test_who_has_failed_gets_a_part_beside_what_serves_or_where_nothing_does() -> None:
    serving, _ = best_plan(EIGHT_LAYERS, Choice(HONEST, {}), None, may_move=False)
    trial = Choice(HONEST | {"dora": capability_of(WHOLE)}, {}, frozenset({"dora"}))
    plan, _ = best_plan(EIGHT_LAYERS, trial, serving, may_move=True)
    assert peers_of(plan) == [HONEST.keys(), {"dora"}]
    plan, _ = best_plan(EIGHT_LAYERS, Choice(HONEST, {}, frozenset(HONEST)), None, may_move=True)
    assert peers_of(plan) == [HONEST.keys()]


def test_a_plan_is_kept_for_a_peer_that_fails_to_answer_if_there_is_none_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way between the two may be cut, and clients relay; once its record ends, it is gone."""
    monkeypatch.setattr(
        "node.control.planner_loop.next_plan", lambda *_, **__: (Plan(()), "too little memory")
    )

    async def story() -> None:
        bureau = Bureau(tmp_path)
        await bureau.open(monkeypatch)
        await bureau.world.board(STRANGER).publish(CAPABILITY)
        await bureau.membership.refresh()
        stages = (
            Stage(0, 1, (Shard(f"{ME}/0", 1, 1),)),
            Stage(1, 2, (Shard(f"{STRANGER}/0", 1, 1),)),
        )
        document = PlanDocument(Plan((Pipeline(stages),)), 0, ME, SPEC.digest)
        bureau.plan_store.accepted = document
        assert not await bureau.planner_loop.work()
        assert not await bureau.planner_loop.work()
        assert bureau.plan_store.accepted == document
        assert not await bureau.plans()
        del bureau.world.records[Capability, STRANGER]
        await bureau.membership.refresh()
        assert await bureau.planner_loop.work()
        assert len(await bureau.plans()) == 1

    asyncio.run(story())
