"""A revoked machine tries to come back, with all that it has, over real libp2p and a real board."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.network import open_links
from swarm.dht.bootstrap import KnownPeers
from swarm.dht.dht_board import DhtBoard
from swarm.errors import BadInvite, PeerLost, PeerRefused, Unreachable
from swarm.invites import Invite
from swarm.p2p.libp2p_channel import LibP2PChannel
from swarm.p2p.p2p_daemon import open_p2p
from swarm.p2p.p2pd_process import Network
from swarm.records import Relay
from swarm.trust.door import Door
from swarm.trust.identity import Identity
from swarm.trust.machine_state import MachineState
from swarm.trust.members import Machine, Members
from swarm.trust.register import Register
from tests.swarm.certified_world import ASK_SECONDS, KEY, World, world_in
from tests.swarm.conftest import Eventually

REFUSALS = (PeerRefused, PeerLost)


@dataclass
class Cheat:
    """A program that knows the key and looks at no register."""

    board: DhtBoard | None
    channel: LibP2PChannel
    addresses: tuple[str, ...]

    @property
    def peer(self) -> str:
        return self.channel.peer


async def cheat(world: World, members: Members | None, identity: Identity) -> Cheat:
    """With whatever pass these members show; the board is None if nobody lets it in."""
    daemon = await open_p2p(identity, Network())
    world.stack.push_async_callback(daemon.close)
    daemon.door = Door(daemon.peer, members=members)
    board = None
    try:
        known = KnownPeers(world.addresses)
        board = await DhtBoard.open(daemon, world.id, identity, key=KEY, known=known)
        world.stack.push_async_callback(board.close)
    except Unreachable:
        for address in world.addresses:
            await daemon.connect(address)
    channel = await LibP2PChannel.open(daemon, world.id, KEY)
    world.stack.push_async_callback(channel.close)
    channel.listen(lambda *_: None, lambda *_: None)
    return Cheat(board, channel, await daemon.addresses())


def blind(world: World, name: str, peer: str) -> Members:
    """The machine of a folder as it was before anybody revoked it."""
    machines = MachineState(world.folder / name)
    holding = machines.holding(world.id)
    assert holding is not None
    return Members(world.id, peer, Machine(machines.identity(), holding), Register(world.id))


def test_a_revoked_machine_comes_back_under_no_id_and_reads_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with world_in(tmp_path) as world:
            host, ticket = await world.host(), world.ticket()
            member = await world.node("member", ticket)
            guest = await world.node("guest", ticket)
            world.copied("guest", "copy")
            assert await guest.asks(host.peer) == b"a secret"
            assert {r.name for r in (await guest.held.board.read(Relay)).values()} >= {"host"}

            host.members.revoke(guest.members.machine.identity.peer)
            await member.admissions._hear_one(host.peer)

            for at in (host, member):  # as it is, over the connections that it has
                with pytest.raises(REFUSALS):
                    await guest.asks(at.peer)
                assert guest.peer not in await at.held.board.read(Relay)
                await at.held.board.publish(Relay([], 0.0, "later"))
            seen = await guest.held.board.read(Relay)  # old ones may be left at the machine itself
            assert "later" not in {relay.name for relay in seen.values()}

            with pytest.raises(BadInvite, match="was revoked"):  # a copy of all that it has
                await world.node("copy", ticket)
            with pytest.raises(BadInvite, match="void: a machine was revoked"):  # new, old invite
                await world.node("new", ticket)
            with pytest.raises(BadInvite, match="this invite buys no certificate"):
                await world.node("plain")
            for name, shown in (("the same machine, another id", "copy"), ("no pass", "")):
                fresh = Identity.throwaway()
                members = blind(world, shown, fresh.peer) if shown else None
                other = await cheat(world, members, fresh)
                assert other.board is None, name
                with pytest.raises(REFUSALS):
                    await other.channel.ask(host.peer, "secret", b"", timeout_seconds=ASK_SECONDS)
            thief = Identity.throwaway()  # a member's pass, which it has been shown
            borrowed = blind(world, "copy", thief.peer)
            borrowed._own = member.members._own
            assert (await cheat(world, borrowed, thief)).board is None

    asyncio.run(story())


def test_a_peer_whose_pass_was_never_seen_shows_it_before_it_hears_anything(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with world_in(tmp_path) as world:
            host, ticket = await world.host(), world.ticket()
            guest = await world.node("guest", ticket)
            fresh = Identity.throwaway()
            hidden = await cheat(world, blind(world, "guest", fresh.peer), fresh)
            host.members.revoke(guest.members.machine.identity.peer)
            host.members.passes._forget(host.members.passes._seen[hidden.peer])
            heard: list[bytes] = []

            async def listen(_peer: str, payload: bytes) -> bytes:
                heard.append(payload)
                return b""

            hidden.channel.answer("secret", listen)
            with pytest.raises(PeerRefused, match="Not asked: The machine of this peer is revoked"):
                await host.asks(hidden.peer)
            with pytest.raises(REFUSALS):
                await host.held.channel.open_stream(hidden.peer, timeout_seconds=ASK_SECONDS)
            assert heard == []
            assert await host.asks((await world.node("late", world.ticket())).peer) == b"a secret"

    asyncio.run(story())


def test_a_client_that_runs_on_hears_of_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """Else it would send text to who is out, for as long as that one shows it an advert."""
    monkeypatch.setattr("swarm.dht.admissions.SHARE_SECONDS", 0.2)

    async def story() -> None:
        async with world_in(tmp_path) as world:
            host, ticket = await world.host(), world.ticket()
            guest = await world.node("guest", ticket)
            invite = Invite(world.addresses, world.id, "tiny", KEY, ticket=ticket)
            async with open_links(invite, tmp_path / "client") as links:
                there = links.channel.ask
                assert await there(guest.peer, "secret", b"", timeout_seconds=ASK_SECONDS)
                host.members.revoke(guest.members.machine.identity.peer)

                async def is_refused() -> bool:
                    try:
                        await there(guest.peer, "secret", b"", timeout_seconds=ASK_SECONDS)
                    except PeerRefused as error:
                        return "Not asked: The machine of this peer is revoked" in error.cause
                    return False

                await eventually(is_refused)

    asyncio.run(story())


def test_whom_one_invite_has_let_in_is_known_when_one_of_them_is_revoked(tmp_path: Path) -> None:
    async def story() -> None:
        async with world_in(tmp_path) as world:
            host, ticket = await world.host(), world.ticket()
            machines = [
                (await world.node(name, ticket)).members.machine.identity.peer
                for name in ("guest", "laid up")
            ]
            other = await world.node("other", world.ticket())
            register = host.members.register
            assert register.came_with(machines[0]) == {machines[1]}
            assert register.came_with(other.members.machine.identity.peer) == frozenset()

    asyncio.run(story())
