"""PlanStore: the latest credible plan, fetched from its maker, under the fence of terms."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node.control.membership import Membership, Standing
from node.control.next_plan import PlanDocument
from node.control.plan_store import COPIES, PlanStore, TermFence
from swarm.election import LEASE_SECONDS, TERM_JUMP, PlanOrder
from swarm.errors import PeerRefused, SwarmError
from swarm.p2p.plan_document import digest_of
from swarm.plan import Assignment, Pipeline, Plan, Shard, Stage
from swarm.records import Lease, PlanRef
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.node.memberships import SPEC, SWARM, capability_of, look, membership_of

ME, PLANNER, OTHER = (peer_named(name) for name in ("me", "planner", "other"))
STAGES = (
    Stage(0, 3, (Shard(f"{OTHER}/0", 5, 5), Shard(f"{ME}/0", 3, 3))),
    Stage(3, 8, (Shard(f"{ME}/1", 8, 8),)),
)
PLAN = Plan((Pipeline(STAGES),))
Lie = dict[str, Any]


class Stores:
    """Our plan store, and those of a planner and of another peer."""

    def __init__(self, folder: Path) -> None:
        self.world = MemoryWorld()
        self.folder = folder
        self.views: dict[str, Membership] = {}
        self.stores: dict[str, PlanStore] = {}
        for name in ("me", "planner", "other"):
            (folder / name).mkdir()
            peer = peer_named(name)
            self.views[peer] = membership_of(self.world, name)
            channel = self.world.channels[peer]
            self.stores[peer] = PlanStore(SWARM, folder / name, channel)

    @property
    def own(self) -> PlanStore:
        return self.stores[ME]

    async def offer(
        self, term: int, peer: str = PLANNER, rank: int = 0, lie: Lie | None = None
    ) -> PlanRef:
        """Let a peer that holds the lease announce a plan; other fields make it a lie."""
        document = PlanDocument(PLAN, term, peer, SPEC.digest)
        data = document.to_bytes()
        reference = PlanRef(term, rank, self.stores[peer].put(data), len(data))
        board = self.world.board(peer)
        await board.publish(capability_of())
        await self.give_lease(peer, term)
        await board.publish(replace(reference, **(lie or {})))
        return reference

    async def give_lease(self, peer: str, term: int) -> None:
        """Let one peer hold the only live lease."""
        now = time.time()
        for each in (PLANNER, OTHER):
            until = now + LEASE_SECONDS if each == peer else now - 1.0
            await self.world.board(each).publish(Lease(term, until))

    async def adopt(self) -> bool:
        """Look at the board and adopt what is there."""
        self.views[ME].verified_term = self.own.term
        await look(self.views[ME])
        return await self.own.adopt_latest(self.views[ME])

    def restart(self) -> None:
        """Our plan store after a restart: only the disk is left."""
        self.stores[ME] = PlanStore(SWARM, self.folder / "me", self.world.channels[ME])


Story = Callable[[Stores], Awaitable[None]]


@pytest.fixture
def with_stores(tmp_path: Path) -> Callable[[Story], None]:
    def run(story: Story) -> None:
        async def whole() -> None:
            async with asyncio.timeout(5):
                await story(Stores(tmp_path))

        asyncio.run(whole())

    return run


Run = Callable[[Story], None]


def test_an_announced_plan_is_fetched_persisted_and_followed(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        assert not await stores.adopt()
        reference = await stores.offer(3)
        assert await stores.adopt()
        assert stores.own.accepted is not None
        assert stores.own.accepted.plan == PLAN
        assert stores.own.term == 3
        order = TermFence(stores.folder / "me").order_of(SWARM)
        assert order == PlanOrder(3, 0, reference.digest)
        assert not await stores.adopt()

    with_stores(story)


def test_devices_find_their_part_in_it(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        assert stores.own.assignment_of(f"{ME}/0") is None
        await stores.offer(3)
        await stores.adopt()
        assert stores.own.assignment_of(f"{ME}/0") == Assignment(STAGES[0], 1)
        assert stores.own.assignment_of(f"{ME}/1") == Assignment(STAGES[1], 0)
        assert stores.own.assignment_of(f"{ME}/2") is None

    with_stores(story)


def test_who_has_a_plan_hands_it_on(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        reference = await stores.offer(3)
        await stores.adopt()
        channel = stores.world.channels[OTHER]
        data = await channel.ask(ME, "plan", reference.digest.encode())
        assert digest_of(data) == reference.digest
        with pytest.raises(PeerRefused, match="not here"):
            await channel.ask(ME, "plan", b"\xff" * 100)

    with_stores(story)


def test_the_latest_of_several_offers_is_taken(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        await stores.offer(3)
        await stores.offer(4, OTHER, rank=2)
        assert await stores.adopt()
        assert stores.own.accepted is not None
        assert stores.own.accepted.planner == OTHER
        await stores.offer(4, PLANNER, rank=1)
        assert await stores.adopt()
        assert stores.own.accepted.planner == PLANNER

    with_stores(story)


def test_an_older_plan_is_refused_and_stays_refused_after_a_restart(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        await stores.offer(4)
        await stores.adopt()
        await stores.offer(3)
        assert not await stores.adopt()
        stores.restart()
        assert not await stores.adopt()
        assert stores.own.accepted is None
        assert stores.own.term == 4

    with_stores(story)


def test_a_restart_takes_up_the_plan_that_it_knows_by_name(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        await stores.offer(4)
        await stores.adopt()
        stores.restart()
        assert await stores.adopt()
        assert stores.own.accepted is not None
        assert stores.own.accepted.plan == PLAN

    with_stores(story)


async def _recalled(stores: Stores, *, followed: int, copy: bytes | None = None) -> Plan | None:
    """What we take up after a restart as the planner, while another peer follows a term."""
    document = PlanDocument(PLAN, 4, ME, SPEC.digest)
    stores.own.propose(document, 0)
    stores.restart()
    stores.stores[OTHER].put(document.to_bytes())
    if copy is not None:
        stores.stores[OTHER]._copies = dict.fromkeys(stores.stores[OTHER]._copies, copy)
    stores.views[OTHER].own = Standing(followed)
    await stores.world.board(OTHER).publish(capability_of())
    await look(stores.views[ME])
    await stores.own.recall(stores.views[ME])
    return stores.own.accepted.plan if stores.own.accepted else None


def test_a_planner_that_restarts_takes_up_its_plan_from_those_that_follow_it(
    with_stores: Run,
) -> None:
    async def story(stores: Stores) -> None:
        assert await _recalled(stores, followed=4) == PLAN
        assert stores.own.term == 4

    with_stores(story)


@pytest.mark.parametrize("copy", [b"{}", PlanDocument(PLAN, 4, OTHER, SPEC.digest).to_bytes()])
def test_nobody_can_pass_another_plan_off_as_the_one_before_a_restart(
    with_stores: Run, copy: bytes
) -> None:
    async def story(stores: Stores) -> None:
        assert await _recalled(stores, followed=4, copy=copy) is None

    with_stores(story)


def test_only_those_that_follow_our_plan_are_asked_for_it(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        assert await _recalled(stores, followed=3) is None

    with_stores(story)


def test_our_own_plan_is_voted_for_before_it_is_announced(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        reference = stores.own.propose(PlanDocument(PLAN, 5, ME, SPEC.digest), 1)
        assert stores.own.term == 5
        assert stores.own.accepted is None
        with pytest.raises(SwarmError, match="later plan"):
            stores.own.propose(PlanDocument(PLAN, 4, ME, SPEC.digest), 0)
        board = stores.world.board(ME)
        await board.publish(capability_of())
        await board.publish(reference)
        stores.views[ME].own_lease = Lease(5, time.time() + LEASE_SECONDS)
        assert await stores.adopt()
        assert stores.own.accepted is not None
        assert stores.own.accepted.planner == ME
        assert not await stores.adopt()

    with_stores(story)


@pytest.mark.parametrize("lie", [{"digest": "0" * 64}, {"term": 4}, {"digest": "no hex"}])
def test_a_reference_that_lies_about_its_plan_is_not_followed(with_stores: Run, lie: Lie) -> None:
    async def story(stores: Stores) -> None:
        await stores.offer(3, lie=lie)
        assert not await stores.adopt()
        assert stores.own.term == 0

    with_stores(story)


def test_a_plan_that_another_made_is_not_followed(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        reference = await stores.offer(3)
        thief = stores.world.board(OTHER)
        document = PlanDocument(PLAN, 3, PLANNER, SPEC.digest)
        stores.stores[OTHER].put(document.to_bytes())
        await thief.publish(capability_of())
        await stores.give_lease(OTHER, 3)
        await thief.publish(replace(reference, rank=0, term=3, digest=reference.digest))
        await stores.world.board(PLANNER).publish(replace(reference, term=0))
        assert not await stores.adopt()

    with_stores(story)


def test_a_plan_of_an_absurd_term_is_not_followed_and_does_not_hide_an_honest_one(
    with_stores: Run,
) -> None:
    async def story(stores: Stores) -> None:
        await stores.offer(3, PLANNER)
        assert await stores.adopt()
        await stores.offer(10 * TERM_JUMP, OTHER)
        assert not await stores.adopt()
        await stores.offer(4, PLANNER)
        assert await stores.adopt()
        assert stores.own.term == 4

    with_stores(story)


def test_a_newcomer_does_not_believe_an_absurd_term_either(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        await stores.offer(10 * TERM_JUMP, OTHER)
        assert not await stores.adopt()
        assert stores.own.term == 0
        await stores.offer(3, PLANNER)
        assert await stores.adopt()
        assert stores.own.term == 3

    with_stores(story)


def test_a_newcomer_follows_the_high_term_that_the_others_follow(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        high = 10 * TERM_JUMP
        for peer in (PLANNER, OTHER):
            await stores.world.board(peer).publish(capability_of())
            stores.views[peer].own = Standing(high)
        await stores.offer(high, PLANNER)
        assert await stores.adopt()
        assert stores.own.term == high
        assert TermFence(stores.folder / "me").order_of(SWARM)

    with_stores(story)


def test_strangers_without_a_lease_dictate_nothing(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        await stores.offer(7)
        assert await stores.adopt()
        for term in range(8, 13):
            await stores.offer(term, OTHER)
            await stores.give_lease(PLANNER, 7)
            assert not await stores.adopt()
        assert stores.own.accepted is not None
        assert stores.own.accepted.planner == PLANNER

    with_stores(story)


def test_a_plan_with_a_problem_is_not_followed_and_that_is_said_once(
    with_stores: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(stores: Stores) -> None:
        stores.own._problem_of = lambda *_: "nobody knows its device"
        await stores.offer(3)
        for _ in range(3):
            assert not await stores.adopt()
        assert stores.own.term == 0

    with_stores(story)
    assert caplog.text.count("nobody knows its device") == 1


def test_a_plan_whose_maker_is_gone_is_left_for_later(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        await stores.offer(3)
        await look(stores.views[ME])
        stores.world.cut(ME, PLANNER)
        assert not await stores.adopt()
        assert stores.own.term == 0
        stores.world.heal(ME, PLANNER)
        assert await stores.adopt()

    with_stores(story)


def test_a_plan_of_a_peer_without_a_capability_is_not_followed(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        data = PlanDocument(PLAN, 3, PLANNER, SPEC.digest).to_bytes()
        reference = PlanRef(3, 0, stores.stores[PLANNER].put(data), len(data))
        await stores.world.board(PLANNER).publish(reference)
        await stores.give_lease(PLANNER, 3)
        assert not await stores.adopt()

    with_stores(story)


def test_only_so_many_documents_are_kept_for_others(with_stores: Run) -> None:
    async def story(stores: Stores) -> None:
        digests = [stores.own.put(f"document {number}".encode()) for number in range(COPIES + 1)]
        channel = stores.world.channels[OTHER]
        with pytest.raises(PeerRefused):
            await channel.ask(ME, "plan", digests[0].encode())
        assert await channel.ask(ME, "plan", digests[-1].encode())

    with_stores(story)
