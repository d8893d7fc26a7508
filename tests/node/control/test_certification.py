"""Certificates among peers: asked for, given to who has served, kept, and passed on."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from node.control.certification import (
    ASKED,
    FOUNDER_SERVED_SECONDS,
    GAP_SECONDS,
    OTHERS_SERVED_SECONDS,
    PROOF_FILE,
    SEEK_SECONDS,
    Certification,
)
from node.control.membership import Membership, Standing
from swarm.errors import PeerRefused
from swarm.records import Advert, Member, StageAdvert
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.trust.certificates import PlannerTrust, depth_of
from swarm.trust.identity import Identity, swarm_id
from tests.node.memberships import SPEC, capability_of, look

LOOK_SECONDS = 20.0


class Clock:
    """Stands for the module time in the rooms under test."""

    def __init__(self) -> None:
        self.seconds = 1.7e9

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds


class Town:
    """A founder, and peers that serve the whole model each."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        for name in ("certification", "membership"):
            monkeypatch.setattr(f"node.control.{name}.time", self.clock)
            monkeypatch.setattr(f"node.control.{name}.CLOCK", self.clock)
        self.folder, self.world = folder, MemoryWorld()
        self.people = {name: Identity.throwaway() for name in ("founder", "anna", "bert")}
        self.swarm = swarm_id("tiny", self.people["founder"].peer)
        self.trust = PlannerTrust(self.swarm, is_private=False, clock=self.clock.now)
        self.views: dict[str, Membership] = {}
        self.papers: dict[str, Certification] = {}
        self.planned = {identity.peer for identity in self.people.values()}
        for name in self.people:
            self.move_in(name)

    def move_in(self, name: str, *, trusted: frozenset[str] = frozenset()) -> None:
        """Start a node, or start it again."""
        identity = self.people[name]
        (self.folder / name).mkdir(exist_ok=True)
        channel, board = self.world.channel(identity.peer), self.world.board(identity.peer)
        view = Membership(self.swarm, SPEC.digest, board, channel, self.trust)
        view.reads_adverts = True
        self.views[name] = view
        self.papers[name] = Certification(
            identity, self.trust, self.folder / name, channel, trusted=trusted
        )

    async def publish(self, *serving: str) -> None:
        """Let everybody be there, and some serve."""
        for name, identity in self.people.items():
            board = self.world.board(identity.peer)
            await board.publish(capability_of())
            member = Member(identity.peer, 0, 8, 8)
            stage = StageAdvert(0, 8, [member], 0.01, 100, 0)
            stages = [stage] if name in serving else []
            await board.publish(Advert(SPEC.digest, stages, 1))

    async def live(self, seconds: float, *serving: str) -> None:
        """Let time pass, in which these peers serve and everybody looks."""
        for _ in range(int(seconds / LOOK_SECONDS)):
            await self.publish(*serving)
            self.clock.seconds += LOOK_SECONDS
            for name, view in self.views.items():
                papers = self.papers[name]
                view.own = Standing(0, papers.proof)
                await look(view, everybody=True)
                if papers.certifies:
                    papers.note_service(view, self.planned)
                await papers.seek(view)


Story = Callable[[Town], Awaitable[None]]


@pytest.fixture
def in_town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Story], None]:
    def run(story: Story) -> None:
        async def whole() -> None:
            async with asyncio.timeout(20):
                await story(Town(tmp_path, monkeypatch))

        asyncio.run(whole())

    return run


Run = Callable[[Story], None]


def test_the_founder_certifies_who_has_served_for_a_while_and_nobody_else(in_town: Run) -> None:
    async def story(town: Town) -> None:
        await town.live(FOUNDER_SERVED_SECONDS - LOOK_SECONDS, "anna")
        assert not town.papers["anna"].may_plan
        await town.live(SEEK_SECONDS + 2 * LOOK_SECONDS, "anna")
        assert town.papers["anna"].may_plan
        assert not town.papers["bert"].may_plan
        await town.live(2 * LOOK_SECONDS, "anna")
        founder = town.views["founder"]
        assert founder.may_plan(town.people["anna"].peer)
        assert not founder.may_plan(town.people["bert"].peer)
        assert set(founder.ranking()) == {town.people[n].peer for n in ("founder", "anna")}

    in_town(story)


def test_who_stopped_serving_begins_anew(in_town: Run) -> None:
    async def story(town: Town) -> None:
        await town.live(FOUNDER_SERVED_SECONDS - LOOK_SECONDS, "anna")
        await town.live(GAP_SECONDS + LOOK_SECONDS)
        await town.live(FOUNDER_SERVED_SECONDS - LOOK_SECONDS, "anna")
        assert not town.papers["anna"].may_plan

    in_town(story)


def test_a_peer_without_a_part_in_the_plan_is_not_certified_whatever_it_advertises(
    in_town: Run,
) -> None:
    async def story(town: Town) -> None:
        town.planned.discard(town.people["bert"].peer)
        await town.live(FOUNDER_SERVED_SECONDS + SEEK_SECONDS + 2 * LOOK_SECONDS, "anna", "bert")
        assert town.papers["anna"].may_plan
        assert not town.papers["bert"].may_plan

    in_town(story)


def test_planners_that_refuse_do_not_keep_others_from_being_asked(
    in_town: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(town: Town) -> None:
        asked: set[str] = set()
        papers, view = town.papers["bert"], town.views["bert"]
        planners = [peer_named(f"planner {number}") for number in range(2 * ASKED)]
        monkeypatch.setattr(Membership, "present", dict.fromkeys(planners))
        monkeypatch.setattr(Membership, "may_plan", lambda _self, _peer: True)

        async def refuse(peer: str, *_: object, **__: object) -> bytes:
            asked.add(peer)
            raise PeerRefused("A chain of certificates has at most 3 links.")

        monkeypatch.setattr(papers._channel, "ask", refuse)
        for _ in range(100):
            town.clock.seconds += SEEK_SECONDS
            await papers.seek(view)
        assert asked == set(planners)

    in_town(story)


def test_a_trusted_peer_is_certified_as_soon_as_it_asks(in_town: Run) -> None:
    async def story(town: Town) -> None:
        town.move_in("founder", trusted=frozenset({town.people["bert"].peer}))
        await town.live(SEEK_SECONDS + 2 * LOOK_SECONDS)
        assert town.papers["bert"].may_plan
        assert not town.papers["anna"].may_plan

    in_town(story)


def test_without_the_founder_a_certified_peer_certifies_who_has_served_for_hours(
    in_town: Run,
) -> None:
    async def story(town: Town) -> None:
        town.move_in("founder", trusted=frozenset({town.people["anna"].peer}))
        await town.live(SEEK_SECONDS + 2 * LOOK_SECONDS)
        assert town.papers["anna"].may_plan
        town.world.kill(town.people["founder"].peer)
        del town.people["founder"], town.views["founder"], town.papers["founder"]
        await town.live(FOUNDER_SERVED_SECONDS + SEEK_SECONDS, "bert")
        assert not town.papers["bert"].may_plan
        await town.live(OTHERS_SERVED_SECONDS, "bert")
        assert town.papers["bert"].may_plan
        assert depth_of(town.papers["bert"].proof) == 2

    in_town(story)


def test_a_certificate_is_kept_on_disk_and_a_damaged_one_is_none(in_town: Run) -> None:
    async def story(town: Town) -> None:
        town.move_in("founder", trusted=frozenset({town.people["anna"].peer}))
        await town.live(SEEK_SECONDS + 2 * LOOK_SECONDS)
        town.move_in("anna")
        assert town.papers["anna"].may_plan
        path = town.folder / "anna" / PROOF_FILE
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        town.move_in("anna")
        assert not town.papers["anna"].may_plan

    in_town(story)


def test_a_peer_that_may_not_plan_certifies_nobody(in_town: Run) -> None:
    async def story(town: Town) -> None:
        channel = town.world.channels[town.people["bert"].peer]
        with pytest.raises(PeerRefused, match="certifies nobody"):
            await channel.ask(town.people["anna"].peer, "certify", b"")
        with pytest.raises(PeerRefused, match="Serve for"):
            await channel.ask(town.people["founder"].peer, "certify", b"")

    in_town(story)
