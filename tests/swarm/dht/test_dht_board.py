"""DhtBoard on real DHT nodes: who sees what, for how long, and what no forger achieves."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID

from swarm.dht.board import (
    CROWD,
    SEARCH_FROM,
    has_shards,
    keys_to_publish,
    known_keys,
    shard_keys,
    shard_of,
)
from swarm.dht.bootstrap import KnownPeers
from swarm.dht.dht_board import DhtBoard
from swarm.dht.record_validator import SwarmValidator
from swarm.errors import BadInput, LocalProtocolError, Unreachable
from swarm.p2p.p2p_daemon import open_p2p
from swarm.p2p.p2pd_process import Network
from swarm.records import KINDS, Capability, Lease, Manifest, PlanRef, Record, record_to_list
from swarm.testing.memory_network import peer_named
from swarm.trust.identity import Identity
from swarm.trust.network_clock import NetworkClock
from tests.swarm.conftest import Eventually, Peer, Swarm

MANIFEST = Manifest("swarm-tiny", "digest", "f32", 1.7e9)


def capability(name: str = "", *, leaving: bool = False) -> Capability:
    return Capability("digest", [], [], "host", True, 1.7e9, name, leaving=leaving)


# ---------------------------------------------------------------- keys, without a network


def test_an_ordinary_swarm_uses_one_key_for_each_kind() -> None:
    peer = peer_named("anybody")
    for kind in KINDS:
        assert keys_to_publish("swarm", kind, peer, CROWD - 1) == [f"swarm/{kind.KEY}"]


def test_a_crowd_stands_under_its_shards() -> None:
    peer = peer_named("anybody")
    keys = keys_to_publish("swarm", Capability, peer, CROWD)
    assert keys[0] == f"swarm/capability/{shard_of(peer)}"
    assert keys_to_publish("swarm", Lease, peer, CROWD) == ["swarm/planner"]


@pytest.mark.parametrize("peers", [CROWD, 2000, 6000])
def test_readers_of_a_crowd_are_sent_to_the_shards(peers: int) -> None:
    names = [peer_named(str(number)) for number in range(peers)]
    keys = [keys_to_publish("swarm", Capability, name, peers) for name in names]
    sampled = sum("swarm/capability" in found for found in keys)
    assert has_shards(Capability, sampled)
    assert sampled < CROWD
    assert not has_shards(Capability, SEARCH_FROM - 1)
    assert not has_shards(Lease, peers)


def test_every_key_that_is_used_is_known() -> None:
    known = {key for key, _ in known_keys("swarm")}
    assert set(shard_keys("swarm", Capability)) < known
    assert shard_keys("swarm", Manifest) == []
    assert len(known) == len(KINDS) + 32


# ---------------------------------------------------------------- on real nodes


@pytest.fixture(scope="module")
def host(swarm: Swarm) -> Peer:
    return swarm.run(swarm.peer(board=True))


@pytest.fixture(scope="module")
def other(swarm: Swarm, host: Peer) -> Peer:
    return swarm.run(swarm.peer(board=True))


@pytest.fixture(scope="module")
def client(swarm: Swarm, host: Peer, other: Peer) -> Peer:
    return swarm.run(swarm.peer(board=True, client=True))


async def seen(peer: Peer, kind: type[Record]) -> dict[str, Record]:
    return dict(await peer.own_board().read(kind))


def test_what_one_publishes_all_read(swarm: Swarm, host: Peer, other: Peer, client: Peer) -> None:
    async def story() -> None:
        await host.own_board().publish(MANIFEST)
        await other.own_board().publish(capability("other"))
        await client.own_board().publish(capability("client"))
        for peer in (host, other, client):
            assert await seen(peer, Manifest) == {host.id: MANIFEST}
            assert await seen(peer, Capability) == {
                other.id: capability("other"),
                client.id: capability("client"),
            }

    swarm.run(story())


def test_a_later_record_replaces_an_earlier_one_everywhere(
    swarm: Swarm, host: Peer, other: Peer
) -> None:
    async def story() -> None:
        for name in ("first", "second"):
            await other.own_board().publish(capability(name))
        await other.own_board().publish(capability(leaving=True), ttl_seconds=1)
        assert (await seen(host, Capability))[other.id] == capability(leaving=True)

    swarm.run(story())


def test_a_record_is_gone_when_its_time_is_over(
    swarm: Swarm, host: Peer, other: Peer, eventually: Eventually
) -> None:
    async def story() -> None:
        await other.own_board().publish(Lease(1, 1.7e9), ttl_seconds=0.6)
        assert other.id in await seen(host, Lease)

        async def is_gone() -> bool:
            return await seen(host, Lease) == {}

        await eventually(is_gone)

    swarm.run(story())


def test_a_cached_copy_answers_when_the_latest_is_not_asked_for(
    swarm: Swarm, host: Peer, client: Peer
) -> None:
    async def story() -> None:
        await host.own_board().publish(PlanRef(1, 0, "digest", 10))
        for latest in (True, False):
            found = await client.own_board().read(PlanRef, latest=latest)
            assert found == {host.id: PlanRef(1, 0, "digest", 10)}

    swarm.run(story())


def test_our_own_wrong_record_is_our_own_error(swarm: Swarm, other: Peer) -> None:
    async def story() -> None:
        with pytest.raises(LocalProtocolError, match="founder"):
            await other.own_board().publish(MANIFEST)
        with pytest.raises(LocalProtocolError, match="bytes"):
            await other.own_board().publish(capability("x" * 2048))

    swarm.run(story())


def test_no_forgery_reaches_an_honest_node(swarm: Swarm, host: Peer, other: Peer) -> None:
    """The forger speaks hivemind's own protocol, with a validator that lets everything pass."""

    async def story() -> None:
        await other.own_board().publish(capability("honest"))
        forger = await swarm.peer(board=True)
        node = forger.own_board()._node
        writer = SwarmValidator(swarm.id, forger.identity)
        key, until = f"{swarm.id}/capability", time.time() + 50

        async def stored(subkey: str | None, value: bytes, moment: float, name: str = key) -> Any:
            return await node.protocol.call_store(
                host.daemon.p2p.peer_id,
                [DHTID.generate(name)],
                [value],
                [moment],
                subkeys=[subkey],
            )

        def value(moment: float, author: str = forger.id, name: str = key) -> bytes:
            values = record_to_list(capability("forged"))
            found: bytes = writer.signed_record(name, author, values, moment).value
            return found

        assert await stored(forger.id, value(until), until) == [True]  # an honest one, to compare
        assert await stored(other.id, value(until, other.id), until) == [False]
        assert await stored(forger.id, value(until), until + 1) == [False]
        assert await stored(forger.id, value(until + 900), until + 900) == [False]
        assert await stored(None, msgpack.packb("plain"), until) == [False]
        assert await stored(forger.id, value(until), until, f"{swarm.id}/junk") == [False]
        found = await seen(host, Capability)
        assert found[other.id] == capability("honest")
        assert found[forger.id] == capability("forged")

    swarm.run(story())


def test_a_stranger_to_a_private_swarm_neither_enters_nor_reads(swarm: Swarm, host: Peer) -> None:
    """With another key nobody answers; without one, over hivemind's own node, nothing is shown."""

    async def story() -> None:
        founder = Identity.throwaway()
        daemon = await open_p2p(founder, Network())
        board = await DhtBoard.open(daemon, "private", founder, key="secret")
        await board.publish(Lease(1, 1.0))
        addresses = await daemon.addresses()
        stranger = Identity.throwaway()
        outside = await open_p2p(stranger, Network(initial_peers=addresses))
        with pytest.raises(Unreachable, match="key has to be right"):
            await DhtBoard.open(
                outside, "private", stranger, key="guess", known=KnownPeers(addresses)
            )
        window = await DHTNode.create(p2p=outside.p2p, client_mode=True)
        asked = [DHTID.generate(name) for name in ("private/planner", f"{board._swarm}/planner")]
        assert await window.protocol.call_find(daemon.p2p.peer_id, asked) is None
        assert board.neighbours == 0
        assert await board.read(Lease) == {founder.peer: Lease(1, 1.0)}
        for part in (outside, board, daemon):
            await part.close()

    swarm.run(story())


# ---------------------------------------------------------------- joining


def test_a_clock_that_is_off_is_named_with_its_offset(
    swarm: Swarm, host: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        protocol = host.own_board()._node.protocol
        ahead = replace(protocol._context, clock=NetworkClock(lambda: time.time() + 60.0))
        monkeypatch.setattr(protocol, "_context", ahead)
        identity = Identity.throwaway()
        daemon = await open_p2p(identity, Network(initial_peers=swarm.addresses))
        with pytest.raises(BadInput, match=r"clock is (59|6[0-3])\.\d s behind") as caught:
            await DhtBoard.open(daemon, swarm.id, identity, known=KnownPeers(swarm.addresses))
        assert "NTP" in caught.value.next_step
        await daemon.close()

    swarm.run(story())


def test_peers_without_a_board_are_unreachable(swarm: Swarm, host: Peer) -> None:
    async def story() -> None:
        deaf = await open_p2p(Identity.throwaway(), Network())
        identity = Identity.throwaway()
        addresses = await deaf.addresses()
        daemon = await open_p2p(identity, Network(initial_peers=addresses))
        with pytest.raises(Unreachable, match="No peer in the invite answers"):
            await DhtBoard.open(daemon, swarm.id, identity, known=KnownPeers(addresses))
        await daemon.close()
        await deaf.close()

    swarm.run(story())


def test_a_board_closes_within_seconds_after_its_daemon_died(swarm: Swarm, host: Peer) -> None:
    async def story() -> None:
        dying = await swarm.peer(board=True)
        dying.daemon.p2p._child.kill()
        await asyncio.wait_for(dying.daemon.ended.wait(), 10)
        start = time.monotonic()
        await dying.own_board().close()
        assert time.monotonic() - start < 3

    swarm.run(story())


def test_a_lonely_board_goes_back_to_the_peers_it_knows(
    swarm: Swarm,
    host: Peer,
    other: Peer,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:
    async def story() -> None:
        monkeypatch.setattr("swarm.dht.bootstrap.PAUSES_SECONDS", (0.1, 0.1))
        lonely = (await swarm.peer(board=True)).own_board()
        table = lonely._node.protocol.routing_table

        async def has_peers() -> bool:
            return lonely.neighbours > 0

        await eventually(has_peers)
        for uid in list(table.uid_to_peer_id):
            del table[uid]
        assert lonely.neighbours == 0
        await eventually(has_peers)
        await host.own_board().publish(MANIFEST)
        assert host.id in await lonely.read(Manifest)

    swarm.run(story())
