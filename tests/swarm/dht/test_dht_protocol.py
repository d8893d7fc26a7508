"""SwarmProtocol and Replicas: what liars achieve in a DHT of honest boards."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import dht_pb2

from swarm.dht.board import plain_key
from swarm.dht.dht_board import DhtBoard
from swarm.dht.dht_protocol import (
    DISTRUST_STRIKES,
    DISTRUSTED_CAP,
    FIND_CAP,
    STORE_CAP,
    SwarmProtocol,
    _is_bounded,
    node_id_of,
)
from swarm.errors import LocalProtocolError, Unreachable
from swarm.records import Advert, Lease, PlanRef
from swarm.testing.memory_network import peer_named
from swarm.trust.door import Door
from swarm.trust.identity import Identity
from swarm.trust.introduction import Introductions, introduction_of
from swarm.trust.network_clock import CLOCK
from swarm.trust.peer_lists import PeerLists
from tests.swarm.dht.dht_world import DhtWorld

NEAR = 20  # ids that a liar claims


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(30):
            await story()

    asyncio.run(in_time())


class Liar(DHTProtocol):  # type: ignore[misc]
    """Takes every record and keeps none; knows only itself, under every id it likes."""

    _rpc_handlers = None
    _stub_type = None
    near: list[DHTID]

    @classmethod
    def _get_handle_name(cls, namespace: str | None, method_name: str) -> str:
        return f"DHTProtocol.{method_name}"

    async def rpc_store(
        self, request: dht_pb2.StoreRequest, context: P2PContext
    ) -> dht_pb2.StoreResponse:
        return dht_pb2.StoreResponse(store_ok=[True] * len(request.keys), peer=self.node_info)

    async def rpc_find(
        self, request: dht_pb2.FindRequest, context: P2PContext
    ) -> dht_pb2.FindResponse:
        nothing = dht_pb2.FindResult(
            type=dht_pb2.NOT_FOUND,
            nearest_node_ids=[node_id.to_bytes() for node_id in self.near],
            nearest_peer_ids=[self.p2p.peer_id.to_bytes()] * len(self.near),
        )
        return dht_pb2.FindResponse(results=[nothing] * len(request.keys), peer=self.node_info)


async def liar_in(world: DhtWorld, key: str, *, own_id: bool) -> Liar:
    """A liar who has announced ids next to a key, or its own, to every honest peer."""
    others = list(world.peers)
    daemon = world.daemon(Identity.throwaway())
    target = int(DHTID.generate(key))
    near = [DHTID(target ^ number) for number in range(1, NEAR + 1)]
    ids = [node_id_of(daemon.peer)] if own_id else near
    liar: Liar = await Liar.create(daemon.p2p, ids[0], 20, 5, 20, 1.0)
    liar.near = near
    for node_id in ids:
        liar.node_info = dht_pb2.NodeInfo(node_id=node_id.to_bytes())
        for other in others:
            await liar.call_ping(PeerID.from_base58(other))
    return liar


@pytest.mark.parametrize("key", ["", "secret"])
@pytest.mark.parametrize("own_id", [False, True])
def test_a_liar_next_to_a_key_hides_nothing(key: str, own_id: bool) -> None:
    async def story() -> None:
        world = DhtWorld(key)
        boards = [await world.board() for _ in range(6)]
        name = plain_key(boards[0]._swarm, Advert)
        liar = await liar_in(world, name, own_id=own_id)
        for board in boards:
            await board.publish(Advert("d" * 64, [], 1))
        for board in boards:
            assert len(await board.read(Advert)) == len(boards)
            table = board._node.protocol.routing_table
            own = {node_id_of(str(liar.p2p.peer_id))} if own_id and not key else set()
            assert {
                uid for uid, peer in table.uid_to_peer_id.items() if peer == liar.p2p.peer_id
            } <= own
            await board.close()

    run(story)


def test_a_peer_that_takes_records_and_shows_none_is_left_alone() -> None:
    async def story() -> None:
        world = DhtWorld()
        board = await world.board()
        liar = await liar_in(world, plain_key(world.id, Lease), own_id=True)
        protocol: SwarmProtocol = board._node.protocol
        assert board.neighbours == 1
        for term in range(DISTRUST_STRIKES):
            with pytest.raises(Exception, match="No peer takes"):
                await board.publish(Lease(term, 0.0))
        assert protocol.is_distrusted(str(liar.p2p.peer_id))
        assert board.neighbours == 0
        await liar.call_ping(protocol.p2p.peer_id)
        assert board.neighbours == 0
        await board.close()

    run(story)


def test_strikes_of_peers_that_are_never_met_again_are_not_kept_for_ever() -> None:
    async def story() -> None:
        world = DhtWorld()
        board = await world.board()
        protocol: SwarmProtocol = board._node.protocol
        for number in range(DISTRUSTED_CAP + 10):
            protocol.strike(PeerID.from_base58(peer_named(f"liar {number}")))
        assert len(protocol._strikes) <= DISTRUSTED_CAP
        await board.close()

    run(story)


def test_every_peer_of_a_small_swarm_holds_every_record() -> None:
    async def story() -> None:
        world = DhtWorld()
        boards = [await world.board() for _ in range(9)]
        await boards[4].publish(Lease(1, 0.0))
        key = DHTID.generate(plain_key(world.id, Lease))
        for board in boards:
            assert boards[4].peer in board._node.protocol.storage.get(key).value
            await board.close()

    run(story)


def test_a_record_in_the_cache_does_not_hide_what_is_stored() -> None:
    """hivemind answers with its cache alone if that expires later, and anybody may fill it."""

    async def story() -> None:
        world = DhtWorld()
        host, other = await world.board(), await world.board()
        await host.publish(Lease(1, 0.0), ttl_seconds=10)
        signed = other._signed(Lease(2, 0.0), plain_key(world.id, Lease), time.time() + 14)
        asked = host._node.protocol.p2p.peer_id, [DHTID.from_bytes(signed.key)]
        assert await other._node.protocol.call_store(
            *asked, [signed.value], signed.expiration_time, subkeys=[other.peer], in_cache=True
        ) == [True]
        answers = await other._node.protocol.call_find(*asked)
        ((item, _),) = answers.values()
        assert {peer for peer, _ in item.value.items()} == {host.peer, other.peer}
        for board in (host, other):
            await board.close()

    run(story)


async def with_protocol(key: str = "") -> tuple[DhtBoard, SwarmProtocol, Any]:
    world = DhtWorld(key)
    board = await world.board()
    stranger = SimpleNamespace(remote_id=PeerID.from_base58(peer_named("stranger")))
    return board, board._node.protocol, stranger


def test_a_stranger_without_the_proof_is_told_nothing() -> None:
    async def story() -> None:
        board, protocol, stranger = await with_protocol("secret")
        await board.publish(Lease(1, 0.0))
        key = DHTID.generate(plain_key(board._swarm, Lease)).to_bytes()
        node = dht_pb2.NodeInfo(node_id=node_id_of(str(stranger.remote_id)).to_bytes())
        ping = await protocol.rpc_ping(dht_pb2.PingRequest(peer=node), stranger)
        find = await protocol.rpc_find(dht_pb2.FindRequest(keys=[key], peer=node), stranger)
        assert ping == dht_pb2.PingResponse()
        assert find == dht_pb2.FindResponse()
        await asyncio.sleep(0)
        assert board.neighbours == 0
        await board.close()

    run(story)


def test_a_proof_is_of_no_use_to_anybody_else() -> None:
    async def story() -> None:
        board, protocol, stranger = await with_protocol("secret")
        request = dht_pb2.FindRequest(keys=[bytes(20)])
        proof = protocol._context.key.proof
        own, peer = board.peer, str(stranger.remote_id)
        for stolen in (
            proof("dht question", peer_named("member"), own),
            proof("dht question", own, peer),
            proof("dht answer", peer, own),
        ):
            request.auth.signature = stolen
            assert not (await protocol.rpc_find(request, stranger)).results
        request.auth.signature = proof("dht question", peer, own)
        assert (await protocol.rpc_find(request, stranger)).results
        await board.close()

    run(story)


@pytest.mark.parametrize(
    "keys", [[bytes(20)] * (FIND_CAP + 1), [b""], [bytes(21)]], ids=["many", "short", "long"]
)
def test_a_question_beyond_the_caps_is_not_answered(keys: list[bytes]) -> None:
    async def story() -> None:
        board, protocol, stranger = await with_protocol()
        answer = await protocol.rpc_find(dht_pb2.FindRequest(keys=keys), stranger)
        assert answer == dht_pb2.FindResponse()
        await board.close()

    run(story)


def store_request(count: int, **changes: Any) -> dht_pb2.StoreRequest:
    columns: dict[str, Any] = {
        "keys": [bytes(20)] * count,
        "subkeys": [b"\xa1x"] * count,
        "values": [b""] * count,
        "expiration_time": [time.time() + 9] * count,
    }
    return dht_pb2.StoreRequest(**{**columns, **changes})


def test_a_store_beyond_the_caps_is_not_looked_at() -> None:
    async def story() -> None:
        board, protocol, stranger = await with_protocol()
        for request in (store_request(STORE_CAP + 1), store_request(2, values=[b""])):
            assert await protocol.rpc_store(request, stranger) == dht_pb2.StoreResponse()
        await board.close()

    run(story)


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        (b"", b""),
        (b"", b"\xc7\xff\x50"),
        (b"", b"\x93" * 100_000),
        (b"\xc0", b"plain"),
        (b"\x90", b"list"),
        (b"\xff", b""),
        (b"\xa1x", b"unsigned"),
    ],
)
def test_nonsense_is_refused_entry_by_entry(tag: bytes, value: bytes) -> None:
    async def story() -> None:
        board, protocol, stranger = await with_protocol()
        request = store_request(1, subkeys=[tag], values=[value])
        assert list((await protocol.rpc_store(request, stranger)).store_ok) == [False]
        assert not protocol.storage
        await board.close()

    run(story)


def test_an_answer_that_names_endless_peers_is_dropped_unread() -> None:
    node = bytes(20)
    fine = dht_pb2.FindResult(nearest_node_ids=[node] * 20, nearest_peer_ids=[b"p" * 38] * 20)
    assert _is_bounded(fine)
    for nodes, peers in (
        ([node] * 21, [b"p"] * 21),
        ([node], [b"p" * 1_000_000]),
        ([node * 2], [b"p"]),
        ([node], []),
    ):
        answer = dht_pb2.FindResult(nearest_node_ids=nodes, nearest_peer_ids=peers)
        assert not _is_bounded(answer)


def test_the_handlers_are_called_as_hivemind_calls_them() -> None:
    assert SwarmProtocol._get_handle_name(None, "rpc_find") == "DHTProtocol.rpc_find"
    assert DHTProtocol._get_handle_name(None, "rpc_find") == "DHTProtocol.rpc_find"


def test_what_cannot_be_packed_is_our_own_error() -> None:
    async def story() -> None:
        board = await DhtWorld().board()
        with pytest.raises(LocalProtocolError, match="does not travel"):
            await board.publish(PlanRef(1, 0, "digest", 2**64))
        await board.close()

    run(story)


def test_a_plain_hivemind_node_reads_an_open_swarm() -> None:
    """Older programs, which know no proof, still find what newer ones publish."""

    async def story() -> None:
        world = DhtWorld()
        board = await world.board()
        await board.publish(Lease(7, 0.0))
        daemon = world.daemon(Identity.throwaway())
        old = await DHTNode.create(p2p=daemon.p2p, initial_peers=[], client_mode=True)
        asked = PeerID.from_base58(board.peer), [DHTID.generate(plain_key(world.id, Lease))]
        ((item, _),) = (await old.protocol.call_find(*asked)).values()
        assert [peer for peer, _ in item.value.items()] == [board.peer]
        await board.close()

    run(story)


def test_a_peer_that_is_refused_reads_nothing_and_is_asked_nothing() -> None:
    async def story() -> None:
        world, bad = DhtWorld(), Identity.throwaway()
        refusal = {bad.peer: "It is banned."}.get
        world.doors[world.founder.peer] = Door(world.founder.peer, lambda p, _: refusal(p) or "")
        host = await world.board()
        await host.publish(PlanRef(1, 0, "digest", 1))
        with pytest.raises(Unreachable, match="No peer in the invite answers"):
            await world.board(bad)
        assert host.neighbours == 0
        other = await world.board()
        assert await other.read(PlanRef)

    run(story)


def test_a_client_of_an_allowed_node_reads_where_others_are_refused() -> None:
    async def story() -> None:
        world, node = DhtWorld(), Identity.throwaway()
        allowed = PeerLists(allowed=[node.peer]).problem_with
        host = world.founder.peer
        world.doors[host] = Door(host, allowed, None, Introductions(world.id))
        board = await world.board()
        await board.publish(PlanRef(1, 0, "digest", 1))
        client, other = Identity.throwaway(), Identity.throwaway()
        shown = introduction_of(world.id, client.peer, [node], CLOCK.now())
        for each in (client, other):  # the other one has overheard it
            mine = Introductions(world.id, shown)
            world.doors[each.peer] = Door(each.peer, introductions=mine)
        assert await (await world.board(client, client=True)).read(PlanRef)
        with pytest.raises(Unreachable):
            await world.board(other, client=True)

    run(story)
