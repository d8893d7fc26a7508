"""A relay: what its command line means, what it shows on the board, and what it says."""

import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.config import NodeConfig
from node.network.reachability import ReachState, verdict_of
from node.network.relay_peer import RelayPeer, alone_lines, live, read_config
from swarm.errors import BadInput, BadInvite
from swarm.invites import Invite
from swarm.p2p.dial_back import Finding
from swarm.records import Manifest, Relay
from swarm.testing.memory_network import MemoryWorld, peer_named
from tests.swarm.certified_world import KEY, world_in

ME, WAN = peer_named("relay"), "203.0.113.7"
REACHED = Finding((WAN,), (f"/ip4/{WAN}/tcp/4001",))
VAIN = Finding((WAN,), ())


def relay_in(world: MemoryWorld, lines: list[str]) -> RelayPeer:
    network: Any = SimpleNamespace(
        channel=world.channel(ME),
        board=world.board(ME),
        process=SimpleNamespace(connected=None, given_up=asyncio.Event()),
        invite=Invite((), "swarm", "model"),
        addresses=(f"/ip4/10.0.0.2/tcp/4001/p2p/{ME}",),
        held=None,
        admissions=None,
    )
    return RelayPeer(network, "elm", lines.append)


def test_a_relay_shows_where_others_have_dialed_it_until_it_leaves() -> None:
    async def story() -> None:
        world, lines = MemoryWorld(), list[str]()
        relay = relay_in(world, lines)
        assert lines == [f"relay: elm ({ME[-8:]}) for swarm"]
        relay.note(ReachState(False, verdict_of([REACHED])))
        showing = asyncio.create_task(relay.show())
        await asyncio.sleep(0.01)
        record = (await world.board(ME).read(Relay))[ME]
        assert record.addresses == [f"/ip4/{WAN}/tcp/4001", "/ip4/10.0.0.2/tcp/4001"]
        assert (record.name, record.leaving) == ("elm", False)
        assert "dialed back by 1 of 1" in lines[1]
        showing.cancel()
        await relay.leave()
        assert (await world.board(ME).read(Relay))[ME].leaving

    asyncio.run(story())


def test_a_relay_of_no_swarm_says_how_founders_name_it() -> None:
    assert read_config(["--alone"]).founds
    public, home = f"/ip4/{WAN}/tcp/4001/p2p/{ME}", f"/ip4/10.0.0.2/tcp/4001/p2p/{ME}"
    assert alone_lines([home, public]) == [f"relay: python -m swarm.node --host --relay {public}"]
    (line,) = alone_lines([home])
    assert "no public address" in line
    assert "--announce" in line


def test_a_relay_that_nobody_can_dial_relays_for_nobody_and_says_what_to_do() -> None:
    async def story() -> None:
        world, lines = MemoryWorld(), list[str]()
        relay = relay_in(world, lines)
        relay.note(ReachState(True, verdict_of([VAIN])))
        showing = asyncio.create_task(relay.show())
        await asyncio.sleep(0.01)
        assert (await world.board(ME).read(Relay))[ME].leaving
        assert "--announce" in lines[1]
        showing.cancel()

    asyncio.run(story())


def test_in_a_certified_swarm_it_shares_what_is_revoked_and_ends_when_it_is_itself() -> None:
    async def story() -> None:
        world, lines, shared = MemoryWorld(), list[str](), asyncio.Event()

        async def share() -> None:
            shared.set()
            await asyncio.Event().wait()

        async def until_revoked() -> None:
            await shared.wait()
            raise BadInvite("This machine was revoked.")

        relay = relay_in(world, lines)
        network: Any = relay._network
        network.admissions = SimpleNamespace(share=share, until_revoked=until_revoked)
        with pytest.raises(BadInvite, match="was revoked"):
            await asyncio.wait_for(relay.run(asyncio.Event()), 10.0)
        assert (await world.board(ME).read(Relay))[ME].leaving
        assert lines[-1] == "left: record withdrawn"

    asyncio.run(story())


def test_it_runs_until_it_is_told_to_stop() -> None:
    async def story() -> None:
        world, lines, stop = MemoryWorld(), list[str](), asyncio.Event()
        running = asyncio.create_task(relay_in(world, lines).run(stop))
        await asyncio.sleep(0)
        stop.set()
        await asyncio.wait_for(running, 10.0)
        assert lines[-1] == "left: record withdrawn"

    asyncio.run(story())


def test_a_real_one_lets_newcomers_of_a_certified_swarm_in_until_it_is_revoked(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with world_in(tmp_path) as world:
            host = await world.host()
            await host.held.board.publish(Manifest("tiny", "a" * 64, "f32", 0.0))
            invite = Invite(world.addresses, world.id, "tiny", KEY, ticket=world.ticket())
            config = NodeConfig(
                founds=False,
                invite=invite.encode(),
                name="elm",
                listen="127.0.0.1",
                state=tmp_path / "relay",
            )
            lines = list[str]()
            running = asyncio.create_task(live(config, lines.append))
            shown: dict[str, Relay] = {}
            while not shown and not running.done():
                read = await host.held.board.read(Relay)
                shown = {peer: each for peer, each in read.items() if each.name == "elm"}
                await asyncio.sleep(0.05)  # nothing announces a record
            ((peer, record),) = shown.items()
            world.addresses = tuple(f"{each}/p2p/{peer}" for each in record.addresses)
            newcomer = await world.node("newcomer", world.ticket())  # by its word alone
            assert await newcomer.asks(host.peer) == b"a secret"

            found = host.members.passes.get(peer)
            assert found is not None
            host.members.revoke(found.machine)
            with pytest.raises(BadInvite, match="This machine was revoked"):
                await running
            assert lines[-1] == "left: record withdrawn"

    asyncio.run(story())


def test_its_command_line_is_that_of_a_node_without_devices(tmp_path: Path) -> None:
    state = ("--state", str(tmp_path))
    config = read_config(("swarm1:x", "--announce", f"{WAN}:4001", "--name", "elm", *state))
    assert (config.invite, config.name, config.port) == ("swarm1:x", "elm", 4001)
    assert config.announce == (f"/ip4/{WAN}/tcp/4001",)
    assert not config.founds
    with pytest.raises(BadInput, match="--announce"):
        read_config(("--announce", WAN, *state))


def test_it_loads_neither_torch_nor_transformers() -> None:
    code = "import node.network.relay_peer, sys; print({'torch', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
