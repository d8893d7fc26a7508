"""The plan shelf: the latest credible plan, fetched from its maker, under the ledger's fence."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node.control.ledger import Ledger
from node.control.membership import Neighbourhood, Standing
from node.control.next_plan import PlanDocument, digest_of
from node.control.plan_store import COPIES, PlanShelf
from swarm.election import LEASE_SECONDS, TERM_JUMP, PlanOrder
from swarm.errors import PeerRefused, SwarmError
from swarm.plan import Assignment, Pipeline, Plan, Shard, Stage
from swarm.records import Lease, PlanRef
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.node.neighbours import SPEC, SWARM, capability_of, look, neighbourhood_of

ME, PLANNER, OTHER = (peer_named(name) for name in ("me", "planner", "other"))
STAGES = (
    Stage(0, 3, (Shard(f"{OTHER}/0", 5, 5), Shard(f"{ME}/0", 3, 3))),
    Stage(3, 8, (Shard(f"{ME}/1", 8, 8),)),
)
PLAN = Plan((Pipeline(STAGES),))
Lie = dict[str, Any]


class Shelves:
    """Our shelf, and the shelves of a planner and of another peer."""

    def __init__(self, folder: Path) -> None:
        self.world = MemoryWorld()
        self.folder = folder
        self.views: dict[str, Neighbourhood] = {}
        self.shelves: dict[str, PlanShelf] = {}
        for name in ("me", "planner", "other"):
            (folder / name).mkdir()
            peer = peer_named(name)
            self.views[peer] = neighbourhood_of(self.world, name)
            channel = self.world.channels[peer]
            self.shelves[peer] = PlanShelf(SWARM, folder / name, channel)

    @property
    def own(self) -> PlanShelf:
        return self.shelves[ME]

    async def offer(
        self, term: int, peer: str = PLANNER, rank: int = 0, lie: Lie | None = None
    ) -> PlanRef:
        """Let a peer that holds the office announce a plan; other fields make it a lie."""
        document = PlanDocument(PLAN, term, peer, SPEC.digest)
        data = document.to_bytes()
        reference = PlanRef(term, rank, self.shelves[peer].put(data), len(data))
        board = self.world.board(peer)
        await board.publish(capability_of())
        await self.give_office(peer, term)
        await board.publish(replace(reference, **(lie or {})))
        return reference

    async def give_office(self, peer: str, term: int) -> None:
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
        """Our shelf after a restart: only the disk is left."""
        self.shelves[ME] = PlanShelf(SWARM, self.folder / "me", self.world.channels[ME])


Story = Callable[[Shelves], Awaitable[None]]


@pytest.fixture
def with_shelves(tmp_path: Path) -> Callable[[Story], None]:
    def run(story: Story) -> None:
        async def whole() -> None:
            async with asyncio.timeout(5):
                await story(Shelves(tmp_path))

        asyncio.run(whole())

    return run


Run = Callable[[Story], None]


def test_an_announced_plan_is_fetched_persisted_and_followed(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        assert not await shelves.adopt()
        reference = await shelves.offer(3)
        assert await shelves.adopt()
        assert shelves.own.accepted is not None
        assert shelves.own.accepted.plan == PLAN
        assert shelves.own.term == 3
        order = Ledger(shelves.folder / "me").order_of(SWARM)
        assert order == PlanOrder(3, 0, reference.digest)
        assert not await shelves.adopt()

    with_shelves(story)


def test_devices_find_their_part_in_it(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        assert shelves.own.assignment_of(f"{ME}/0") is None
        await shelves.offer(3)
        await shelves.adopt()
        assert shelves.own.assignment_of(f"{ME}/0") == Assignment(STAGES[0], 1)
        assert shelves.own.assignment_of(f"{ME}/1") == Assignment(STAGES[1], 0)
        assert shelves.own.assignment_of(f"{ME}/2") is None

    with_shelves(story)


def test_who_has_a_plan_hands_it_on(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        reference = await shelves.offer(3)
        await shelves.adopt()
        channel = shelves.world.channels[OTHER]
        data = await channel.ask(ME, "plan", reference.digest.encode())
        assert digest_of(data) == reference.digest
        with pytest.raises(PeerRefused, match="not here"):
            await channel.ask(ME, "plan", b"\xff" * 100)

    with_shelves(story)


def test_the_latest_of_several_offers_is_taken(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        await shelves.offer(3)
        await shelves.offer(4, OTHER, rank=2)
        assert await shelves.adopt()
        assert shelves.own.accepted is not None
        assert shelves.own.accepted.planner == OTHER
        await shelves.offer(4, PLANNER, rank=1)
        assert await shelves.adopt()
        assert shelves.own.accepted.planner == PLANNER

    with_shelves(story)


def test_an_older_plan_is_refused_and_stays_refused_after_a_restart(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        await shelves.offer(4)
        await shelves.adopt()
        await shelves.offer(3)
        assert not await shelves.adopt()
        shelves.restart()
        assert not await shelves.adopt()
        assert shelves.own.accepted is None
        assert shelves.own.term == 4

    with_shelves(story)


def test_a_restart_takes_up_the_plan_that_it_knows_by_name(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        await shelves.offer(4)
        await shelves.adopt()
        shelves.restart()
        assert await shelves.adopt()
        assert shelves.own.accepted is not None
        assert shelves.own.accepted.plan == PLAN

    with_shelves(story)


async def _recalled(shelves: Shelves, *, followed: int, copy: bytes | None = None) -> Plan | None:
    """What we take up after a restart as the planner, while another peer follows a term."""
    document = PlanDocument(PLAN, 4, ME, SPEC.digest)
    shelves.own.propose(document, 0)
    shelves.restart()
    shelves.shelves[OTHER].put(document.to_bytes())
    if copy is not None:
        shelves.shelves[OTHER]._copies = dict.fromkeys(shelves.shelves[OTHER]._copies, copy)
    shelves.views[OTHER].own = Standing(followed)
    await shelves.world.board(OTHER).publish(capability_of())
    await look(shelves.views[ME])
    await shelves.own.recall(shelves.views[ME])
    return shelves.own.accepted.plan if shelves.own.accepted else None


def test_a_planner_that_restarts_takes_up_its_plan_from_those_that_follow_it(
    with_shelves: Run,
) -> None:
    async def story(shelves: Shelves) -> None:
        assert await _recalled(shelves, followed=4) == PLAN
        assert shelves.own.term == 4

    with_shelves(story)


@pytest.mark.parametrize("copy", [b"{}", PlanDocument(PLAN, 4, OTHER, SPEC.digest).to_bytes()])
def test_nobody_can_pass_another_plan_off_as_the_one_before_a_restart(
    with_shelves: Run, copy: bytes
) -> None:
    async def story(shelves: Shelves) -> None:
        assert await _recalled(shelves, followed=4, copy=copy) is None

    with_shelves(story)


def test_only_those_that_follow_our_plan_are_asked_for_it(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        assert await _recalled(shelves, followed=3) is None

    with_shelves(story)


def test_our_own_plan_is_voted_for_before_it_is_announced(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        reference = shelves.own.propose(PlanDocument(PLAN, 5, ME, SPEC.digest), 1)
        assert shelves.own.term == 5
        assert shelves.own.accepted is None
        with pytest.raises(SwarmError, match="later plan"):
            shelves.own.propose(PlanDocument(PLAN, 4, ME, SPEC.digest), 0)
        board = shelves.world.board(ME)
        await board.publish(capability_of())
        await board.publish(reference)
        shelves.views[ME].own_lease = Lease(5, time.time() + LEASE_SECONDS)
        assert await shelves.adopt()
        assert shelves.own.accepted is not None
        assert shelves.own.accepted.planner == ME
        assert not await shelves.adopt()

    with_shelves(story)


@pytest.mark.parametrize("lie", [{"digest": "0" * 64}, {"term": 4}, {"digest": "no hex"}])
def test_a_reference_that_lies_about_its_plan_is_not_followed(with_shelves: Run, lie: Lie) -> None:
    async def story(shelves: Shelves) -> None:
        await shelves.offer(3, lie=lie)
        assert not await shelves.adopt()
        assert shelves.own.term == 0

    with_shelves(story)


def test_a_plan_that_another_made_is_not_followed(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        reference = await shelves.offer(3)
        thief = shelves.world.board(OTHER)
        document = PlanDocument(PLAN, 3, PLANNER, SPEC.digest)
        shelves.shelves[OTHER].put(document.to_bytes())
        await thief.publish(capability_of())
        await shelves.give_office(OTHER, 3)
        await thief.publish(replace(reference, rank=0, term=3, digest=reference.digest))
        await shelves.world.board(PLANNER).publish(replace(reference, term=0))
        assert not await shelves.adopt()

    with_shelves(story)


def test_a_plan_of_an_absurd_term_is_not_followed_and_does_not_hide_an_honest_one(
    with_shelves: Run,
) -> None:
    async def story(shelves: Shelves) -> None:
        await shelves.offer(3, PLANNER)
        assert await shelves.adopt()
        await shelves.offer(10 * TERM_JUMP, OTHER)
        assert not await shelves.adopt()
        await shelves.offer(4, PLANNER)
        assert await shelves.adopt()
        assert shelves.own.term == 4

    with_shelves(story)


def test_a_newcomer_does_not_believe_an_absurd_term_either(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        await shelves.offer(10 * TERM_JUMP, OTHER)
        assert not await shelves.adopt()
        assert shelves.own.term == 0
        await shelves.offer(3, PLANNER)
        assert await shelves.adopt()
        assert shelves.own.term == 3

    with_shelves(story)


def test_a_newcomer_follows_the_high_term_that_the_others_follow(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        high = 10 * TERM_JUMP
        for peer in (PLANNER, OTHER):
            await shelves.world.board(peer).publish(capability_of())
            shelves.views[peer].own = Standing(high)
        await shelves.offer(high, PLANNER)
        assert await shelves.adopt()
        assert shelves.own.term == high
        assert Ledger(shelves.folder / "me").order_of(SWARM)

    with_shelves(story)


def test_strangers_without_a_lease_dictate_nothing(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        await shelves.offer(7)
        assert await shelves.adopt()
        for term in range(8, 13):
            await shelves.offer(term, OTHER)
            await shelves.give_office(PLANNER, 7)
            assert not await shelves.adopt()
        assert shelves.own.accepted is not None
        assert shelves.own.accepted.planner == PLANNER

    with_shelves(story)


def test_a_plan_with_a_problem_is_not_followed_and_that_is_said_once(
    with_shelves: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(shelves: Shelves) -> None:
        shelves.own._problem_of = lambda *_: "nobody knows its device"
        await shelves.offer(3)
        for _ in range(3):
            assert not await shelves.adopt()
        assert shelves.own.term == 0

    with_shelves(story)
    assert caplog.text.count("nobody knows its device") == 1


def test_a_plan_whose_maker_is_gone_is_left_for_later(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        await shelves.offer(3)
        await look(shelves.views[ME])
        shelves.world.cut(ME, PLANNER)
        assert not await shelves.adopt()
        assert shelves.own.term == 0
        shelves.world.heal(ME, PLANNER)
        assert await shelves.adopt()

    with_shelves(story)


def test_a_plan_of_a_peer_without_a_capability_is_not_followed(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        data = PlanDocument(PLAN, 3, PLANNER, SPEC.digest).to_bytes()
        reference = PlanRef(3, 0, shelves.shelves[PLANNER].put(data), len(data))
        await shelves.world.board(PLANNER).publish(reference)
        await shelves.give_office(PLANNER, 3)
        assert not await shelves.adopt()

    with_shelves(story)


def test_only_so_many_documents_are_kept_for_others(with_shelves: Run) -> None:
    async def story(shelves: Shelves) -> None:
        digests = [shelves.own.put(f"document {number}".encode()) for number in range(COPIES + 1)]
        channel = shelves.world.channels[OTHER]
        with pytest.raises(PeerRefused):
            await channel.ask(ME, "plan", digests[0].encode())
        assert await channel.ask(ME, "plan", digests[-1].encode())

    with_shelves(story)
