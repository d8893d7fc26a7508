"""Admissions: delegates certify newcomers, others hand them on, and registers become equal."""

import asyncio
import math
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from swarm.dht.admissions import HANDED_ON, REDEEM, Admissions, certify_founder
from swarm.dht.founders_manifest import SignedManifest
from swarm.errors import BadInvite, PeerRefused
from swarm.hardware import Device
from swarm.invites import Invite
from swarm.records import Capability, Manifest
from swarm.testing.memory_network import MemoryChannel, MemoryWorld
from swarm.trust.identity import Identity, swarm_id
from swarm.trust.machine_state import MachineState
from swarm.trust.members import REVOKED_WORDS, Machine, Members
from swarm.trust.membership import Holding, certify, found, holding_of
from swarm.trust.network_clock import CLOCK
from swarm.trust.passes import Passes
from swarm.trust.register import Register
from swarm.trust.tickets import ONCE, ask_with, sell
from tests.swarm.trust.machines import FOUNDER, SWARM, One

SECONDS = 20.0
DEVICE = Device(0, "cpu", "CPU", 10**9, 1e9, 1e9)
HOUR = 3600.0


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, SECONDS))


def now_certified(by: One, *, as_delegate: bool = False) -> One:
    """As `certified`, but at the time of the wall, which admissions go by."""
    made = One()
    made.held = certify(SWARM, by.issuer, made.id, CLOCK.now(), as_delegate=as_delegate)
    return made


@dataclass
class FakeLobby:
    """Notes whom we asked how we stand."""

    asked: list[str] = field(default_factory=list)

    async def learn_standing(self, peers: list[str], _members: Members) -> None:
        self.asked += peers


@dataclass
class Node:
    """A node of a machine, in memory."""

    members: Members
    channel: MemoryChannel
    admissions: Admissions
    lobby: FakeLobby

    @property
    def peer(self) -> str:
        return self.channel.peer


class World:
    """Nodes that have met each other."""

    def __init__(self) -> None:
        self.memory = MemoryWorld()
        self.host = One()
        self.host.held = found(SWARM, FOUNDER, self.host.identity, CLOCK.now())
        self.nodes: list[Node] = []
        self.kept: list[Holding] = []
        self.later_seconds = 0.0

    def now(self) -> float:
        return CLOCK.now() + self.later_seconds

    def meet_again(self) -> None:
        """Everybody shows everybody a pass."""
        for one in self.nodes:
            for other in self.nodes:
                if one is not other:
                    assert one.members.problem_of(other.peer, other.members.own_pass) == ""

    async def node(self, one: One, passes: Passes | None = None) -> Node:
        peer = Identity.throwaway().peer
        machine = Machine(one.identity, one.holding)
        members = Members(SWARM, peer, machine, Register(SWARM), passes, clock=self.now)
        channel, lobby = self.memory.channel(peer), FakeLobby()
        board = self.memory.board(peer)
        made = Admissions(members, lobby, channel, board, self.kept.append)  # type: ignore[arg-type]
        known = Capability("m", [DEVICE], [], peer, True, 0.0)
        await board.publish(known)
        node = Node(members, channel, made, lobby)
        for other in self.nodes:
            assert members.problem_of(other.peer, other.members.own_pass) == ""
            assert other.members.problem_of(peer, members.own_pass) == ""
        self.nodes.append(node)
        return node

    def request(self, by: One, flags: int = 0) -> tuple[str, bytes]:
        """A new machine, and what it asks with."""
        now, machine = CLOCK.now(), Identity.throwaway().peer
        return machine, ask_with(SWARM, sell(SWARM, by.issuer, now, now + HOUR, flags), machine)


def test_a_member_hands_a_newcomer_on_to_a_delegate_that_is_there() -> None:
    async def story() -> None:
        world = World()
        await world.node(world.host)
        member = await world.node(now_certified(world.host))
        for _ in range(HANDED_ON + 2):  # programs of the founder's that have come and gone
            one = Identity.throwaway().peer
            machine = Machine(world.host.identity, world.host.holding)
            gone = Members(SWARM, one, machine, Register(SWARM))
            assert member.members.problem_of(one, gone.own_pass) == ""
        machine_id, request = world.request(world.host)
        granted = holding_of(SWARM, await member.admissions.admit("newcomer", request))
        assert granted is not None
        assert granted.machine == machine_id

    run(story())


def test_a_founder_that_has_just_gone_keeps_nobody_from_being_admitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its record still lives, and what is asked of it gets no answer, by whomever."""
    monkeypatch.setattr("swarm.dht.admissions.ASK_SECONDS", HOUR)
    monkeypatch.setattr("swarm.dht.admissions.ADMIT_SECONDS", 0.1)
    monkeypatch.setattr("swarm.dht.admissions.TELL_SECONDS", 0.1)

    async def silent(_peer: str, _payload: bytes) -> bytes:
        await asyncio.sleep(HOUR)
        return b""

    async def story() -> None:
        world = World()
        host = await world.node(world.host)
        await world.node(now_certified(world.host, as_delegate=True))
        member = await world.node(now_certified(world.host))
        monkeypatch.setattr(member.admissions, "_delegates", lambda: _in_order(world))
        for question in (REDEEM, "register"):
            host.channel.answer(question, silent)
        machine_id, request = world.request(world.host)
        granted = holding_of(SWARM, await member.admissions.admit("newcomer", request))
        assert granted is not None
        assert granted.machine == machine_id

    run(story())


async def _in_order(world: World) -> list[str]:
    """The founder first."""
    return [node.peer for node in world.nodes[:2]]


def test_who_brings_nothing_sound_costs_nobody_else_a_question() -> None:
    async def story() -> None:
        world = World()
        host, member = (
            await world.node(world.host),
            await world.node(now_certified(world.host)),
        )
        asked: list[bytes] = []

        async def note(_peer: str, payload: bytes) -> bytes:
            asked.append(payload)
            return b""

        for node in (host, member):
            node.channel.answer(REDEEM, note)
            node.channel.answer("register", note)
        for node in (host, member):
            with pytest.raises(PeerRefused, match="not genuine"):
                await node.admissions.admit("newcomer", b"nonsense")
        assert asked == []

    run(story())


def test_where_no_delegate_is_up_that_is_said_and_what_one_says_is_handed_back() -> None:
    async def story() -> None:
        world = World()
        member = await world.node(now_certified(world.host))
        with pytest.raises(PeerRefused, match="No delegate is up"):
            await member.admissions.admit("newcomer", world.request(world.host)[1])
        host = await world.node(world.host)
        _, request = world.request(world.host, ONCE)
        machine, _ = world.request(world.host)
        host.members.revoke(machine)
        with pytest.raises(PeerRefused, match=r"^The invite is void: a machine was revoked"):
            await member.admissions.admit("newcomer", request)

    run(story())


def test_a_delegate_asks_others_before_it_lets_a_second_machine_in_with_one_ticket() -> None:
    async def story() -> None:
        world = World()
        host = await world.node(world.host)
        other = await world.node(now_certified(world.host, as_delegate=True))
        now = CLOCK.now()
        ticket = sell(SWARM, world.host.issuer, now, now + HOUR, ONCE)
        first, second = (ask_with(SWARM, ticket, Identity.throwaway().peer) for _ in range(2))
        host.members.redeem(first)  # and tells nobody
        with pytest.raises(PeerRefused, match="another one has used it"):
            await other.admissions.admit("newcomer", second)

    run(story())


def test_registers_become_equal_whoever_asks_whom() -> None:
    async def story() -> None:
        world = World()
        host = await world.node(world.host)
        members = [await world.node(now_certified(world.host)) for _ in range(2)]
        gone = now_certified(world.host)
        host.members.revoke(gone.id)
        await members[0].admissions._hear_one(host.peer)  # asks
        await members[0].admissions._hear_one(members[1].peer)  # tells
        for node in world.nodes:
            assert node.members.register.revokes(gone.holding.chain)
        assert len({node.members.register.digest for node in world.nodes}) == 1

    run(story())


def test_who_is_refused_for_being_revoked_asks_for_the_proof() -> None:
    async def story() -> None:
        world = World()
        host, member = (
            await world.node(world.host),
            await world.node(now_certified(world.host)),
        )

        async def refuse(_peer: str, _payload: bytes) -> bytes:
            raise PeerRefused(REVOKED_WORDS)

        host.channel.answer("register", refuse)
        await member.admissions._hear_one(host.peer)
        assert member.lobby.asked == [host.peer]

    run(story())


def test_a_node_ends_when_its_machine_is_revoked() -> None:
    async def story() -> None:
        world = World()
        host, member = (
            await world.node(world.host),
            await world.node(now_certified(world.host)),
        )
        host.members.revoke(member.members.machine.holding.machine)
        await member.admissions._hear_one(host.peer)
        with pytest.raises(BadInvite, match="This machine was revoked"):
            await member.admissions.until_revoked()

    run(story())


def test_certificates_are_renewed_by_who_gave_them_for_as_long_as_nodes_meet() -> None:
    async def story() -> None:
        world = World()
        host = await world.node(world.host)
        delegate = await world.node(now_certified(world.host, as_delegate=True))
        one = One(delegate.members.machine.identity, delegate.members.machine.holding)
        member = await world.node(now_certified(one))
        first = [node.members.machine.holding for node in world.nodes]
        for _ in range(40):  # four years, in steps of less than the least of all spans
            world.later_seconds += 36 * 86400.0
            world.meet_again()
            for node in (delegate, member):
                node.admissions._renewed_at = -math.inf
                await node.admissions._renew_in_time()
        after = [node.members.machine.holding for node in world.nodes]
        assert after[0] == first[0], "the founder's own has no end that matters"
        for old, new in zip(first[1:], after[1:], strict=True):
            assert new.chain.peers == old.chain.peers
            assert new.chain.until > world.now()
        assert {each.machine for each in world.kept} == {each.machine for each in after[1:]}
        assert len(world.kept) < 20
        assert host.members.machine.holding.is_delegate

    run(story())


def test_nobody_renews_what_another_has_given_nor_anything_of_who_is_revoked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        world = World()
        host = await world.node(world.host)
        delegate = await world.node(now_certified(world.host, as_delegate=True))
        one = One(delegate.members.machine.identity, delegate.members.machine.holding)
        below = await world.node(now_certified(one))
        with pytest.raises(PeerRefused, match="Another machine has certified"):
            host.members.renew(below.peer)
        with pytest.raises(PeerRefused, match="Another machine has certified"):
            below.members.renew(delegate.peer)
        with pytest.raises(PeerRefused, match="Only members"):
            host.members.renew(Identity.throwaway().peer)
        host.members.revoke(delegate.members.machine.identity.peer)
        with pytest.raises(PeerRefused, match="Only members"):
            host.members.renew(delegate.peer)
        made = holding_of(SWARM, delegate.members.renew(below.peer))  # it has not heard
        assert made is not None
        assert host.members.register.revokes(made.chain), "it is out all the same"
        world.memory.kill(delegate.peer)
        world.memory.kill(host.peer)
        below.admissions._renewed_at = -math.inf
        world.later_seconds = 300 * 86400.0
        await below.admissions._renew_in_time()
        assert "nobody renews this machine's certificate, which ends in 65 days" in caplog.text

    run(story())


def test_a_certificate_is_taken_only_for_a_later_one_of_the_same_machine() -> None:
    async def story() -> None:
        world = World()
        host, member = (
            await world.node(world.host),
            await world.node(now_certified(world.host)),
        )
        own = member.members.machine.holding
        for bad in (b"", b"nonsense", own.data, host.members.machine.holding.data):
            assert member.members.take_renewed(bad) is None
        assert member.members.machine.holding == own

    run(story())


def test_passes_are_kept_for_a_later_start(tmp_path: Path) -> None:
    async def story() -> None:
        world = World()
        await world.node(world.host)
        path = tmp_path / "passes"
        member = await world.node(now_certified(world.host), Passes(SWARM, path))
        await member.admissions._keep_passes()
        again = Passes(SWARM, path)
        assert again.machine_named(world.nodes[0].peer) == world.host.id
        path.unlink()
        path.mkdir()  # cannot be written: nothing but a warning
        assert world.nodes[0].peer
        await member.admissions._keep_passes()

    run(story())


def test_only_a_delegate_puts_a_ticket_into_the_invite_that_it_prints() -> None:
    async def story() -> None:
        world = World()
        host, member = (
            await world.node(world.host),
            await world.node(now_certified(world.host)),
        )
        plain = Invite((f"/ip4/203.0.113.1/tcp/1/p2p/{host.peer}",), SWARM, "tiny", "key")
        made = host.admissions.invite(plain)
        assert made.expires > CLOCK.now() + 29 * 86400
        assert member.admissions.invite(plain) == plain
        machine = Identity.throwaway().peer
        assert host.members.redeem(ask_with(SWARM, made.ticket, machine))
        gone, _ = world.request(world.host)
        host.members.revoke(gone)
        fresh = host.admissions.invite(plain)
        assert host.members.redeem(ask_with(SWARM, fresh.ticket, Identity.throwaway().peer))

    run(story())


def test_a_founders_machine_is_certified_once_and_not_where_the_swarm_is_older(
    tmp_path: Path,
) -> None:
    founder = Identity.throwaway()
    swarm, state = swarm_id("home", founder.peer), tmp_path / "state"
    state.mkdir()
    kept = tmp_path / "manifest"
    certify_founder(swarm, founder, state, kept)
    first = MachineState(state).holding(swarm)
    assert first is not None
    assert first.is_delegate
    certify_founder(swarm, founder, state, kept)
    assert MachineState(state).holding(swarm) == first

    older = tmp_path / "older"
    older.mkdir()
    manifest = Manifest("tiny", "a" * 64, "float32", 0.0)
    kept.write_bytes(SignedManifest.make(founder.peer, swarm, manifest, founder.sign).to_bytes())
    certify_founder(swarm, founder, older, kept)
    assert MachineState(older).holding(swarm) is None
