"""P2PDaemon: what a person hears when p2pd cannot start, and what the daemon tells us."""

import asyncio
import os
import socket
from pathlib import Path

import psutil
import pytest
from hivemind.utils.multiaddr import Multiaddr

from swarm.errors import BadInput, BadInvite, PeerLost, Unreachable
from swarm.p2p.addresses import has_ipv6
from swarm.p2p.p2p_daemon import P2PDaemon, open_p2p
from swarm.p2p.p2pd_process import Network, _listening, last_line, remove_stale_sockets
from swarm.testing.memory_network import peer_named
from swarm.trust.identity import Identity


async def opened(network: Network, identity: Identity | None = None) -> P2PDaemon:
    return await open_p2p(identity or Identity.throwaway(), network)


def test_p2pd_takes_our_ed25519_key_and_listens_on_loopback_only(tmp_path: Path) -> None:
    async def story() -> None:
        identity = Identity.load_or_create(tmp_path)
        daemon = await opened(Network(), identity)
        addresses = await daemon.addresses()
        await daemon.close()
        identity.close()
        assert daemon.peer == identity.peer
        assert len(addresses) == 1
        assert addresses[0].startswith("/ip4/127.0.0.1/tcp/")
        assert addresses[0].endswith(f"/p2p/{identity.peer}")
        assert daemon.ended.is_set()

    asyncio.run(story())


def test_no_router_is_asked_for_a_port() -> None:
    """p2pd would, unless it is told not to."""

    async def story() -> None:
        daemon = await opened(Network(host="0.0.0.0"))
        words = psutil.Process(daemon.p2p._child.pid).cmdline()
        await daemon.close()
        assert [each for each in words if "natPortMap" in each] == ["-natPortMap=0"]

    asyncio.run(story())


def test_addresses_are_known_where_hiveminds_own_codec_of_peer_ids_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*given: object) -> object:
        raise ValueError("a package that it takes for granted is missing")

    async def story() -> None:
        daemon = await opened(Network())
        monkeypatch.setattr(Multiaddr, "encapsulate", fails)
        try:
            (address,) = await daemon.addresses()
        finally:
            await daemon.close()
        assert address.endswith(f"/p2p/{daemon.peer}")

    asyncio.run(story())


def test_a_client_has_no_addresses_and_knows_its_host() -> None:
    async def story() -> None:
        host = await opened(Network())
        addresses = await host.addresses()
        client = await opened(Network(initial_peers=addresses, client=True))
        assert await client.addresses() == ()
        assert (await client.connected())[host.peer] == addresses
        await client.disconnect(host.peer)
        await client.connect(addresses[0])
        await client.close()
        await host.close()

    asyncio.run(story())


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_port_of_the_systems_choice_is_the_same_for_both_families() -> None:
    """Else peers dial back at the port of the wrong one, and call a public node unreachable."""

    async def story() -> None:
        host = await opened(Network(host="0.0.0.0"))
        listening = psutil.Process(host.p2p._child.pid).net_connections("tcp")
        ends = [each.laddr for each in listening if each.status == psutil.CONN_LISTEN]
        await host.close()
        assert len(ends) == 2
        assert len({end.port for end in ends}) == 1

    asyncio.run(story())


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"Port {port} .* in use") as caught:
            asyncio.run(opened(Network(port=port)))
    assert "--port" in caught.value.next_step


def test_an_address_that_is_not_ours_is_refused() -> None:
    for port in (0, 4567):
        with pytest.raises(BadInput, match=r"192\.0\.2\.1 is no address of this") as caught:
            asyncio.run(opened(Network(host="192.0.2.1", port=port)))
        assert "--listen" in caught.value.next_step


def test_what_p2pd_says_is_repeated_in_whole_words_without_the_time() -> None:
    said = "Daemon failed to start: 2026/11/27 15:15:09 failed to listen on " + "a " * 400
    line = last_line(f"2026/11/27 15:15:08 begun\n{said}\n\n")
    assert line.startswith("failed to listen on a a")
    assert len(line) <= 300
    assert last_line("") == "it said nothing"


def test_a_bootstrap_peer_that_is_gone_is_unreachable() -> None:
    address = f"/ip4/127.0.0.1/tcp/1/p2p/{peer_named('gone')}"
    with pytest.raises(Unreachable, match="No peer in the invite answers") as caught:
        asyncio.run(opened(Network(initial_peers=(address,))))
    assert "invite" in caught.value.next_step


def test_one_of_two_bootstrap_peers_is_enough() -> None:
    async def story() -> None:
        host = await opened(Network())
        gone = f"/ip4/127.0.0.1/tcp/1/p2p/{peer_named('gone')}"
        daemon = await opened(Network(initial_peers=(gone, *await host.addresses())))
        with pytest.raises(Unreachable):
            await daemon.connect(gone)
        await daemon.close()
        await host.close()

    asyncio.run(story())


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match="port"):
        Network(port=port)


def test_an_address_without_a_peer_is_refused() -> None:
    with pytest.raises(BadInvite):
        Network(initial_peers=("/ip4/127.0.0.1/tcp/1",))


def test_a_peer_that_no_search_finds_is_reached_where_it_says_it_is() -> None:
    async def story() -> None:
        here, there = await opened(Network()), await opened(Network())  # they have never met

        async def answer(_stream: object, _reader: object, writer: asyncio.StreamWriter) -> None:
            writer.write(b"here")
            writer.close()

        await there.p2p.add_binary_stream_handler("hello", answer)
        with pytest.raises(PeerLost):
            await here.open_stream(there.peer, "hello")
        here.note_addresses(there.peer, await there.addresses())
        reader, writer = await here.open_stream(there.peer, "hello")
        assert await reader.read() == b"here"
        writer.close()
        await here.close()
        await there.close()

    asyncio.run(story())


def test_wrong_addresses_are_a_lost_peer_and_nothing_worse() -> None:
    async def story() -> None:
        daemon = await opened(Network())
        stranger = peer_named("stranger")
        daemon.note_addresses(stranger, ["/ip4/127.0.0.1/tcp/9", "nonsense"])
        with pytest.raises(PeerLost):
            await daemon.open_stream(stranger, "hello")
        await daemon.close()

    asyncio.run(story())


def test_nobody_listens_on_quic() -> None:
    for host in ("0.0.0.0", "127.0.0.1", "::1"):
        listening = _listening(Network(host=host, port=4001))
        assert all(each.endswith("/tcp/4001") for each in listening)


def has_loopback_6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


ON_IPV6 = pytest.mark.skipif(not has_loopback_6(), reason="this machine has no ::1")


@ON_IPV6
def test_a_node_listens_on_ipv6_and_others_reach_it_there() -> None:
    async def story() -> None:
        host = await opened(Network(host="::1"))
        (address,) = await host.addresses()
        client = await opened(Network(initial_peers=(address,), client=True))
        connected = await client.connected()
        await client.close()
        await host.close()
        assert address.startswith("/ip6/::1/tcp/")
        assert connected[host.peer] == (address,)

    assert Network(host="::1").is_loopback
    asyncio.run(story())


@ON_IPV6
def test_by_default_a_node_is_at_addresses_of_both_families() -> None:
    async def story() -> None:
        host = await opened(Network(host="0.0.0.0"))
        kinds = {each.split("/")[1] for each in await host.addresses()}
        await host.close()
        assert kinds == {"ip4", "ip6"}

    asyncio.run(story())


@ON_IPV6
def test_a_port_in_use_is_named_for_ipv6_too() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"Port {port} on ::1 is in use"):
            asyncio.run(opened(Network(host="::1", port=port)))


def test_sockets_that_killed_nodes_left_are_removed_and_no_others(tmp_path: Path) -> None:
    """No node that lives is tried: hivemind takes an empty connection for a fault."""
    gone = {"p2pd-dead", "p2pclient-dead", "p2pclient-lone"}
    kept = {"p2pd-live", "p2pclient-live", "p2pd-young", "else"}
    sockets = {name: socket.socket(socket.AF_UNIX) for name in gone | kept}
    for name, each in sockets.items():
        path = tmp_path / f"hivemind-{name}.sock"
        each.bind(str(path))
        each.listen()
        each.setblocking(False)
        if "live" not in name:
            each.close()
        if "young" not in name:
            os.utime(path, (0, 0))
    (tmp_path / "hivemind-p2pd-file.sock").write_text("no socket")
    os.utime(tmp_path / "hivemind-p2pd-file.sock", (0, 0))
    remove_stale_sockets(tmp_path)
    left = {
        path.name.removeprefix("hivemind-").removesuffix(".sock") for path in tmp_path.iterdir()
    }
    assert left == kept | {"p2pd-file"}
    with pytest.raises(BlockingIOError):
        sockets["p2pclient-live"].accept()
    for each in sockets.values():
        each.close()


def test_a_closed_process_leaves_no_socket() -> None:
    async def story() -> None:
        daemon = await opened(Network())
        paths = [
            Path(str(each["unix"]))
            for each in (daemon.p2p._daemon_listen_maddr, daemon.p2p._client_listen_maddr)
        ]
        assert paths[0].exists()
        daemon.p2p._child.kill()  # hivemind then leaves its socket where it is
        await daemon.ended.wait()
        await daemon.close()
        assert not any(path.exists() for path in paths)

    asyncio.run(story())


def test_why_an_address_cannot_be_dialed_is_a_few_words() -> None:
    async def story() -> None:
        host, daemon = await opened(Network()), await opened(Network())
        bare = (await host.addresses())[0].partition("/p2p/")[0]
        told = {
            f"/ip4/127.0.0.1/tcp/1/p2p/{host.peer}": "refused",
            f"{bare}/p2p/{peer_named('who was there before')}": "another peer is there now",
            f"{bare}/nonsense/p2p/{host.peer}": "the own p2pd does not dial it",
        }
        for address, words in told.items():
            with pytest.raises(Unreachable) as caught:
                await daemon.connect(address)
            assert caught.value.cause == words
        await daemon.connect(f"{bare}/p2p/{host.peer}")
        await host.close()
        await daemon.close()

    asyncio.run(story())
