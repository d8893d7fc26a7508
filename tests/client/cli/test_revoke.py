"""`swarm revoke`: a machine is out by the id of any peer of it, whoever has seen that."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from client.cli.commands import main
from client.cli.revoke import Revoking
from client.network import Links
from swarm.dht.admissions import REGISTER, certify_founder
from swarm.errors import BadInput, PeerRefused, Unreachable
from swarm.hardware import Device
from swarm.invites import Invite
from swarm.p2p.admission import PASS
from swarm.records import Capability
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.trust.identity import Identity, swarm_id
from swarm.trust.machine_state import MachineState
from swarm.trust.members import Machine, Members
from swarm.trust.membership import Holding, Pass, certify, holding_of, pass_for
from swarm.trust.network_clock import CLOCK
from swarm.trust.register import Register
from swarm.trust.tickets import ask_with, sell

DEVICE = Device(0, "cpu", "CPU", 10**9, 1e9, 1e9)


@dataclass
class Machines:
    """A swarm whose founder's machine is this one."""

    state: Path
    founder: Identity = field(default_factory=Identity.throwaway)
    world: MemoryWorld = field(default_factory=MemoryWorld)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        certify_founder(self.id, self.founder, self.state, self.state / "no manifest")

    @property
    def id(self) -> str:
        return swarm_id("home", self.founder.peer)

    @property
    def own(self) -> Machine:
        machines = MachineState(self.state)
        holding = machines.holding(self.id)
        assert holding is not None
        return Machine(machines.identity(), holding)

    def members(self) -> Members:
        machines = MachineState(self.state)
        passes, register = machines.passes(self.id), machines.register(self.id)
        return Members(self.id, peer_named("command"), self.own, register, passes)

    def certified(self) -> tuple[Identity, Holding]:
        machine, own = Identity.throwaway(), self.own
        issuer = own.holding, own.identity
        return machine, certify(self.id, issuer, machine.peer, CLOCK.now(), as_delegate=False)

    def bought(self, ticket: bytes) -> str:
        machine = Identity.throwaway().peer
        granted = self.members().redeem(ask_with(self.id, ticket, machine))
        assert holding_of(self.id, granted)
        return machine

    def ticket(self) -> bytes:
        own, now = self.own, CLOCK.now()
        return sell(self.id, (own.holding, own.identity), now, now + 60, 0)

    def shown(self) -> Pass:
        """The pass of a peer of a member's machine."""
        machine, holding = self.certified()
        return pass_for(self.id, holding, machine, Identity.throwaway().peer, CLOCK.now())

    async def node(self, name: str, *seen: Pass) -> Register:
        """A peer that is there, and has seen passes."""
        peer, register = peer_named(name), Register(self.id)
        passes = {each.chain.subject: each.data for each in seen}
        known = Capability("m", [DEVICE], [], name, True, 0.0, addresses=["/ip4/203.0.113.1/tcp/1"])
        await self.world.board(peer).publish(known)

        async def answer_register(_peer: str, payload: bytes) -> bytes:
            if payload[32:]:
                register.add_all(payload[32:], CLOCK.now())
                self.told.append(name)
            return register.to_bytes()

        async def answer_pass(_peer: str, payload: bytes) -> bytes:
            if payload.decode() not in passes:
                raise PeerRefused("No certificate of that peer was seen here.")
            return passes[payload.decode()]

        channel = self.world.channel(peer)
        channel.answer(REGISTER, answer_register)
        channel.answer(PASS, answer_pass)
        return register

    def revoke(self, peer: str, *words: str, seen: tuple[Pass, ...] | None = None) -> None:
        """The command, with one node that is there and has seen these, or with nobody there."""

        @asynccontextmanager
        async def connect(_invite: Invite) -> AsyncIterator[Links]:
            if seen is None:
                raise Unreachable("No peer in the invite answers.")
            await self.node("one", *seen)
            me = peer_named("command")
            yield Links(self.world.board(me), self.world.channel(me), self.members())

        invite = Invite(
            (f"/ip4/203.0.113.1/tcp/1/p2p/{peer_named('one')}",), self.id, "tiny", "key"
        )
        join = ("--join", invite.encode(), "--state", str(self.state))
        assert main(["revoke", peer, *words, *join], str, connect) == 0

    def is_out(self, machine: str) -> bool:
        return self.members().register.names(machine)


@pytest.fixture
def swarm(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


def test_a_peer_that_somebody_has_seen_is_out_with_its_machine(
    swarm: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    found = swarm.shown()
    swarm.revoke(found.chain.subject, seen=(swarm.shown(), found))
    assert swarm.is_out(found.machine)
    assert swarm.told == ["one"]
    shown = capsys.readouterr()
    assert f"revoked {found.chain.subject}: told 1 peers" in shown.out
    assert "All invites made before now are void" in shown.err


def test_a_peer_that_this_machine_has_seen_is_out_though_nobody_is_there(
    swarm: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    found = swarm.shown()
    passes = swarm.members().passes
    passes.note(found)
    passes.write(passes.take_news())
    swarm.revoke(found.chain.subject)
    assert swarm.is_out(found.machine)
    assert "nobody is told yet; a node of this machine will do it" in capsys.readouterr().out


def test_a_machine_that_was_never_seen_is_out_by_its_own_id(swarm: Machines) -> None:
    machine = swarm.bought(swarm.ticket())
    swarm.revoke(machine)
    assert swarm.is_out(machine)


def test_others_whom_the_same_invite_let_in_are_named_and_out_if_that_is_said(
    swarm: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    ticket = swarm.ticket()
    one, two, three = (swarm.bought(ticket) for _ in range(3))
    other = swarm.bought(swarm.ticket())
    swarm.revoke(one, seen=())
    said = capsys.readouterr().err
    assert two in said
    assert three in said
    assert other not in said
    swarm.revoke(two, "--with-invite", seen=())
    assert list(map(swarm.is_out, (one, two, three, other))) == [True, True, True, False]
    assert "and 1 more that came in by the same invite" in capsys.readouterr().out


def test_who_was_seen_by_nobody_is_no_machine_that_could_be_revoked(swarm: Machines) -> None:
    for seen in ((), None):
        with pytest.raises(BadInput, match=r"No certificate of .* was seen"):
            swarm.revoke(peer_named("stranger"), seen=seen)


def test_a_delegate_is_told_when_its_word_does_not_count(swarm: Machines, tmp_path: Path) -> None:
    state = tmp_path / "delegate"
    machines, own = MachineState(state), swarm.own
    issuer, now = (own.holding, own.identity), CLOCK.now()
    key = machines.identity()
    machines.keep(swarm.id, certify(swarm.id, issuer, key.peer, now, as_delegate=True))
    beside, bought = swarm.shown(), swarm.bought(swarm.ticket())
    machines.register(swarm.id).save()
    swarm.state = state
    members = swarm.members()
    members.hear_register(MachineState(tmp_path).register(swarm.id).to_bytes())
    for peer in (beside.chain.subject, bought):
        with pytest.raises(BadInput, match="admitted by one above this one"):
            swarm.revoke(peer, seen=(beside,))
    below = swarm.shown()
    swarm.revoke(below.chain.subject, seen=(below,))
    assert swarm.members().register.revokes(below.chain)


def test_the_founders_machine_is_revoked_by_nobody(swarm: Machines) -> None:
    passes = swarm.members().passes
    own = swarm.own
    peer = peer_named("its node")
    passes.note(pass_for(swarm.id, own.holding, own.identity, peer, CLOCK.now()))
    passes.write(passes.take_news())
    with pytest.raises(BadInput, match="this very machine"):
        swarm.revoke(peer)


def test_a_peer_that_is_gone_holds_up_none_of_the_others(swarm: Machines) -> None:
    """Nobody answers before all are asked."""

    async def story() -> None:
        shown, me = swarm.shown(), peer_named("command")
        together = asyncio.Barrier(2)
        for name in ("one", "two"):
            await swarm.node(name, shown)
        channel = swarm.world.channel(me)
        ask = channel.ask

        async def ask_together(peer: str, name: str, payload: bytes, **how: float) -> bytes:
            await together.wait()
            return await ask(peer, name, payload, **how)

        channel.ask = ask_together  # type: ignore[method-assign]
        members = swarm.members()
        links = Links(swarm.world.board(me), channel, members)
        known = Invite(("/ip4/127.0.0.1/tcp/1",), swarm.id, "m", "key")
        async with asyncio.timeout(10):
            done = await Revoking(known, members, links).revoke(shown.chain.subject)
        assert done.told == 2

    asyncio.run(story())
