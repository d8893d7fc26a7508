"""Lobby: a newcomer hears what a delegate says of its ticket, or why nobody can say anything."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from swarm.errors import BadInvite, PeerRefused, Unreachable
from swarm.p2p.lobby import Lobby
from swarm.p2p.tcp_probe import tcp_problem
from swarm.trust.entrance import Entrance
from swarm.trust.identity import Identity, swarm_id
from swarm.trust.machine_state import MachineState
from swarm.trust.members import Machine, Members
from swarm.trust.membership import found
from swarm.trust.network_clock import CLOCK
from swarm.trust.tickets import sell
from tests.swarm.conftest import Peer, Swarm

KEY = "a key"
HOUR = 3600.0


class Host:
    """A founder's machine, on a peer of the test's swarm."""

    def __init__(self, swarm: Swarm, peer: Peer, state: Path) -> None:
        self.id, self.swarm, self.peer = swarm.id, swarm, peer
        machines = MachineState(state)
        holding = found(swarm.id, swarm.founder, machines.identity(), CLOCK.now())
        machines.keep(swarm.id, holding)
        self.machine = Machine(machines.identity(), holding)
        self.members = Members(swarm.id, peer.id, self.machine, machines.register(swarm.id))
        self.lobby = Lobby(peer.daemon, swarm.id, KEY)

    @property
    def ticket(self) -> bytes:
        now = CLOCK.now()
        issuer = self.machine.holding, self.machine.identity
        return sell(self.id, issuer, now, now + 3600, 0)

    async def admit(self, _peer: str, request: bytes) -> bytes:
        return self.members.redeem(request)


def test_who_brings_a_ticket_is_a_member_and_one_revoked_learns_it_with_proof(
    swarm: Swarm, tmp_path: Path
) -> None:
    async def story() -> None:
        host = Host(swarm, await swarm.peer(), tmp_path / "host")
        await host.lobby.open(host.admit, host.members)
        host.peer.daemon.door.members = host.members
        guest = await swarm.peer()
        asking = Lobby(guest.daemon, swarm.id, KEY)
        state = tmp_path / "guest"
        entrance = Entrance(swarm.id, host.ticket, state)
        members = await entrance.members(guest.id, lambda r: asking.redeem(swarm.addresses, r))
        assert members is not None
        assert host.members.problem_of(guest.id, members.own_pass) == ""
        again = await Entrance(swarm.id, b"", state).members(guest.id, never)
        assert again is not None, "what was bought is kept, and bought once"
        await asking.learn_standing(swarm.addresses, members)
        members.require_member()
        host.members.revoke(members.machine.identity.peer)
        await asking.learn_standing(swarm.addresses, members)
        with pytest.raises(BadInvite, match="This machine was revoked"):
            members.require_member()
        with pytest.raises(BadInvite, match="This machine was revoked"):
            await entrance.members(guest.id, never)
        host.peer.daemon.door.members = None

    swarm.run(story())


async def never(_request: bytes) -> bytes:
    raise AssertionError("nothing is bought")


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (PeerRefused("No delegate is up."), Unreachable, "Neither the founder nor a delegate"),
        (PeerRefused("This delegate cannot write it."), Unreachable, "Try again when"),
        (PeerRefused("The invite has expired."), BadInvite, "The invite has expired"),
        (PeerRefused("This delegate cannot do that: 3 steps."), BadInvite, "3 steps"),
    ],
)
def test_what_was_refused_is_said_in_words(
    swarm: Swarm, tmp_path: Path, answer: PeerRefused, kind: type[Exception], words: str
) -> None:
    async def refuse(_peer: str, _request: bytes) -> bytes:
        raise answer

    async def story() -> None:
        peer = await swarm.peer()
        host = Host(swarm, peer, tmp_path)
        await host.lobby.open(refuse, host.members)
        guest = await swarm.peer()
        with pytest.raises(kind, match=words):
            await Lobby(guest.daemon, swarm.id, KEY).redeem(await peer.daemon.addresses(), b"")
        with pytest.raises(BadInvite):  # who does not know the key is not even heard
            await Lobby(guest.daemon, swarm.id, "no").redeem(await peer.daemon.addresses(), b"")

    swarm.run(story())


def test_a_peer_that_is_silent_keeps_no_other_from_granting(
    swarm: Swarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs, and one at an address that swallows every packet."""
    monkeypatch.setattr("swarm.p2p.lobby.ASK_SECONDS", HOUR)
    monkeypatch.setattr("swarm.p2p.rpc.ANSWER_SECONDS", HOUR)

    async def silent_there(address: str) -> str:
        if "/192.0.2.1/" in address:
            await asyncio.sleep(HOUR)
        return await tcp_problem(address)

    async def hang(_peer: str, _request: bytes) -> bytes:
        await asyncio.sleep(HOUR)
        return b""

    async def story() -> None:
        monkeypatch.setattr("swarm.p2p.lobby.tcp_problem", silent_there)
        hanging, host = [Host(swarm, await swarm.peer(), tmp_path / name) for name in "ab"]
        await hanging.lobby.open(hang, hanging.members)
        await host.lobby.open(host.admit, host.members)
        guest = await swarm.peer()
        away = [f"/ip4/192.0.2.1/tcp/9/p2p/{Identity.throwaway().peer}"]
        away.append(f"/ip4/192.0.2.1/tcp/9/p2p/{host.peer.id}")  # another one of its own
        given = (*away, *await hanging.peer.daemon.addresses(), *await host.peer.daemon.addresses())
        entrance = Entrance(swarm.id, host.ticket, tmp_path / "guest")
        asking = Lobby(guest.daemon, swarm.id, KEY)
        members = await entrance.members(guest.id, lambda r: asking.redeem(given, r))
        assert members is not None
        assert host.members.problem_of(guest.id, members.own_pass) == ""

    swarm.run(story())


def test_all_peers_are_asked_at_once_how_a_machine_stands(
    swarm: Swarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them answers only when the other one has been asked, too."""
    monkeypatch.setattr("swarm.p2p.lobby.STANDING_SECONDS", HOUR)
    monkeypatch.setattr("swarm.p2p.rpc.ANSWER_SECONDS", HOUR)

    async def story() -> None:
        both, asked = asyncio.Event(), []

        async def wait_for_both(peer: str, _shown: bytes) -> bytes:
            asked.append(peer)
            if len(asked) == 2:
                both.set()
            await both.wait()
            return b""

        hosts = [Host(swarm, await swarm.peer(), tmp_path / name) for name in "ab"]
        for host in hosts:
            await host.lobby.open(host.admit, host.members)
            host.lobby._rpc.answer("standing", wait_for_both)
        guest = await swarm.peer()
        given = [at for host in hosts for at in await host.peer.daemon.addresses()]
        await Lobby(guest.daemon, swarm.id, KEY).learn_standing(given, hosts[0].members)
        assert asked == [guest.id, guest.id]

    swarm.run(story())


def test_an_address_that_refuses_is_named(swarm: Swarm) -> None:
    async def story() -> None:
        guest = await swarm.peer()
        gone = f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.throwaway().peer}"
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9 refused"):
            await Lobby(guest.daemon, swarm.id, KEY).redeem([gone], b"")

    swarm.run(story())


def test_a_machine_without_ticket_or_certificate_enters_as_before(tmp_path: Path) -> None:
    entrance = Entrance(swarm_id("old", Identity.throwaway().peer), b"", tmp_path)
    assert asyncio.run(entrance.members(Identity.throwaway().peer, never)) is None
    assert list(tmp_path.iterdir()) == [], "nothing is written for a swarm that certifies nobody"


def test_what_is_granted_is_read_before_it_is_believed(tmp_path: Path) -> None:
    founder = Identity.throwaway()
    swarm = swarm_id("home", founder.peer)
    other = found(swarm, founder, Identity.throwaway(), CLOCK.now())
    issuer_key = Identity.throwaway()
    issuer = found(swarm, founder, issuer_key, CLOCK.now()), issuer_key
    ticket = sell(swarm, issuer, CLOCK.now(), CLOCK.now() + 60, 0)

    def granting(data: bytes) -> Callable[[bytes], Awaitable[bytes]]:
        async def grant(_request: bytes) -> bytes:
            return data

        return grant

    for data in (b"", b"nonsense", other.data):  # the last one is another machine's
        with pytest.raises(BadInvite, match="no certificate of this machine"):
            asyncio.run(Entrance(swarm, ticket, tmp_path).members(founder.peer, granting(data)))
