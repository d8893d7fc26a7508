"""The plan shelf among peers that lie: what is fetched, believed and kept."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from node.ledger import Ledger
from node.neighbourhood import Neighbourhood
from node.plan_shelf import PlanShelf
from node.planning import PlanDocument, digest_of
from planner.election import TERM_JUMP, PlanOrder
from swarm.channel import Channel
from swarm.errors import RemoteProtocolError
from swarm.hardware import Device
from swarm.memory import MemoryWorld, peer_named
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import Capability, PlanRef
from tests.node.stands import DIGEST, STRANGER

ME, PLANNER = peer_named("me"), peer_named("planner")
SWARM = "swarm"
CAPABILITY = Capability(DIGEST, [Device(0, "cpu", "cpu", 1, 1.0, 1.0)], [], "host", True, 0.0)
PLAN = Plan((Pipeline((Stage(0, 8, (Shard(f"{ME}/0", 8, 8),)),)),))


class Library:
    """A node's shelf, and others that publish whatever a test says."""

    def __init__(self, folder: Path) -> None:
        self.world = MemoryWorld()
        channel = self.world.channel(ME)
        self.neighbourhood = Neighbourhood(SWARM, DIGEST, self.world.board(ME), channel)
        self.shelf = PlanShelf(SWARM, folder, channel)
        self.channels: dict[str, Channel] = {}

    async def join(self, peer: str, term: int = 0) -> None:
        await self.world.board(peer).publish(replace(CAPABILITY, term=term))

    async def offer(self, peer: str, term: int, data: bytes = b"", rank: int = 0) -> str:
        """Publish a plan of a peer that may hold others' documents; returns its digest."""
        data = data or PlanDocument(PLAN, term, peer, DIGEST).to_bytes()

        async def give(_asker: str, _payload: bytes) -> bytes:
            return data

        self.channels[peer] = self.channels.get(peer) or self.world.channel(peer)
        self.channels[peer].answer("plan", give)
        reference = PlanRef(term, rank, digest_of(data), len(data))
        await self.world.board(peer).publish(reference)
        return reference.digest

    async def look(self) -> bool:
        await self.neighbourhood.refresh()
        return await self.shelf.adopt_latest(self.neighbourhood)


@pytest.mark.parametrize(("term", "rank"), [(-1, 0), (5, -1), (2**62, 0)])
def test_a_reference_that_makes_no_sense_is_passed_over(
    tmp_path: Path, term: int, rank: int
) -> None:
    async def story() -> None:
        library = Library(tmp_path)
        for peer in (STRANGER, PLANNER):
            await library.join(peer, term=3)
        await library.offer(STRANGER, term, rank=rank)
        await library.offer(PLANNER, 4)
        assert await library.look()
        assert library.shelf.accepted is not None
        assert library.shelf.accepted.planner == PLANNER

    asyncio.run(story())


@pytest.mark.parametrize(
    "document",
    [
        b"[" * 200_000,
        b'{"plan": ' + b"[" * 200_000,
        b'{"plan": {"pipelines": [{"stages": [{"start": Infinity, "end": 1, "shards": []}]}]}}',
        b'{"plan": {"pipelines": []}, "term": 1, "planner": 7, "model": "m"}',
        b'{"plan": {"pipelines": []}, "term": "1", "planner": "p", "model": "m"}',
        PlanDocument(PLAN, 1, "p", "m").to_bytes().replace(f"{ME}/0".encode(), b"nobody"),
        PlanDocument(PLAN, 1, "p", "m").to_bytes().replace(f"{ME}/0".encode(), b"x/y"),
    ],
)
def test_a_hostile_document_is_refused_with_a_value_error(document: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the type is the promise
        PlanDocument.of_bytes(document)


def test_a_planner_that_answers_nonsense_costs_its_plan_only(tmp_path: Path) -> None:
    async def story() -> None:
        library = Library(tmp_path)
        await library.join(PLANNER)
        await library.offer(PLANNER, 1, b"[" * 200_000)
        assert not await library.look()

        async def ask(*_: object, **__: object) -> bytes:
            raise RemoteProtocolError("An answer's header is not understood.")

        library.shelf._channel.ask = ask  # type: ignore[method-assign]
        assert not await library.look()
        assert library.shelf.accepted is None

    asyncio.run(story())


def test_a_node_that_was_away_for_long_catches_up_with_what_the_others_follow(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        Ledger(tmp_path).accept(SWARM, PlanOrder(1, 0, "aa"))
        library = Library(tmp_path)
        far = 5 * TERM_JUMP
        for peer in (PLANNER, STRANGER):
            await library.join(peer, term=far)
        for term in (far + 1, far + 2):
            digest = await library.offer(PLANNER, term)
            assert await library.look()
            assert Ledger(tmp_path).order_of(SWARM) == PlanOrder(term, 0, digest)

    asyncio.run(story())


def test_one_liar_does_not_lift_the_fence(tmp_path: Path) -> None:
    async def story() -> None:
        Ledger(tmp_path).accept(SWARM, PlanOrder(1, 0, "aa"))
        library = Library(tmp_path)
        await library.join(PLANNER, term=1)
        await library.join(STRANGER, term=2**60)
        await library.offer(STRANGER, 2**60)
        assert not await library.look()
        assert library.shelf.accepted is None

    asyncio.run(story())


def test_a_restarted_node_takes_up_the_plan_that_it_knows_by_name(tmp_path: Path) -> None:
    async def story() -> None:
        library = Library(tmp_path)
        await library.join(PLANNER)
        await library.offer(PLANNER, 1)
        assert await library.look()
        again = Library(tmp_path)
        await again.join(PLANNER, term=1)
        await again.offer(PLANNER, 1)
        assert await again.look()
        assert again.shelf.accepted == library.shelf.accepted
        assert not await again.look()

    asyncio.run(story())


def test_a_later_plan_that_nobody_can_fetch_does_not_hide_the_real_one(tmp_path: Path) -> None:
    async def story() -> None:
        library = Library(tmp_path)
        for peer in (PLANNER, STRANGER):
            await library.join(peer)
        await library.offer(PLANNER, 1)
        await library.world.board(STRANGER).publish(PlanRef(900, 0, "f" * 64, 100))
        assert await library.look()
        assert library.shelf.accepted is not None
        assert library.shelf.accepted.planner == PLANNER

    asyncio.run(story())
