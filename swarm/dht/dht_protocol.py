"""SwarmProtocol: hivemind's DHT protocol as it may face strangers.

Ids: a node's id follows from its peer id, so a peer has one place and cannot choose it. Proof: in
a private swarm every question and every answer carries one, so nobody else enters the table.
Records: checked, counted by who brings them, kept in a BoundedStorage. Answers: bounded before
they are looked at; a bad record is dropped instead of hiding the good ones beside it.
"""

import hmac
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hivemind.dht import node
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import P2P, P2PContext, PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import timed_storage
from hivemind.utils.timed_storage import ValueWithExpiration

from swarm.dht.board import SKEW_SECONDS
from swarm.dht.bounded_storage import PEERS_CAP, BoundedStorage
from swarm.dht.peer_networks import Networks
from swarm.dht.record_validator import SwarmValidator
from swarm.p2p.rate_limit import Budget, RateLimit
from swarm.records import TTL_CAP
from swarm.trust.door import Door
from swarm.trust.network_clock import CLOCK, NetworkClock
from swarm.trust.swarm_key import SwarmKey

BUCKET_SIZE = 20
DEPTH_MODULO = 5
ID_BYTES = 20
PEER_ID_BYTES = 64  # at most; an Ed25519 peer's has 38
FIND_CAP = 16  # keys of one question, hivemind's own chunk
STORE_CAP = 64  # keys of one store: all of a swarm's are fewer
CALLS_PER_SECOND = 300  # of one peer
RECORDS_PER_SECOND, RECORDS_BURST = 100, 4000  # to check for one peer; the burst is a hand-over
DISTRUST_STRIKES = 3  # records taken but not shown, before a peer is left alone
DISTRUST_SECONDS = 600.0
DISTRUSTED_CAP = 1024
logger = logging.getLogger(__name__)

QUESTION, ANSWER = "dht question", "dht answer"


@dataclass(frozen=True, slots=True)
class ProtocolContext:
    """What a protocol knows besides hivemind's own: who it may speak with, and from where."""

    key: SwarmKey
    networks: Networks
    clock: NetworkClock
    door: Door


class SwarmProtocol(DHTProtocol):  # type: ignore[misc]
    """Answers and asks the DHT's three questions: ping, store, find."""

    _rpc_handlers = None  # else both classes would share what hivemind collects once a class
    _stub_type = None
    _context: ProtocolContext
    _distrusted: OrderedDict[str, float]  # until when
    storage: BoundedStorage
    cache: BoundedStorage

    @classmethod
    async def open(
        cls, p2p: P2P, validator: SwarmValidator, context: ProtocolContext, *, client: bool
    ) -> "SwarmProtocol":
        """Serve a peer's part of the DHT, or only ask if it is a client."""
        peer = p2p.peer_id.to_base58()
        self: Any = await cls.create(
            p2p,
            node_id_of(peer),
            BUCKET_SIZE,
            DEPTH_MODULO,
            num_replicas=BUCKET_SIZE,
            wait_timeout=math.inf,
            client_mode=True,  # serves nothing yet
            record_validator=validator,
        )
        _share_clock()
        self.storage, self.cache = BoundedStorage(), BoundedStorage()
        self._context = context
        self._peer = peer
        self._calls = RateLimit(CALLS_PER_SECOND)
        self._records = Budget(RECORDS_PER_SECOND, RECORDS_BURST)
        self._strikes = Counter[str]()
        self._distrusted = OrderedDict()
        if not client:
            self.client_mode = False
            self.node_info = dht_pb2.NodeInfo(node_id=self.node_id.to_bytes())
            await self.add_p2p_handlers(p2p)
        assert isinstance(self, cls)
        return self

    # ------------------------------------------------------------ questions of others

    async def rpc_ping(
        self, request: dht_pb2.PingRequest, context: P2PContext
    ) -> dht_pb2.PingResponse:
        """Somebody wants to be known; an empty answer for a stranger.

        A newcomer (`validate`) learns the swarm's time, others what our wall clock says.
        """
        if not self._admits(request, context.remote_id):
            return dht_pb2.PingResponse()
        answer = await super().rpc_ping(request, context)
        clock = self._context.clock
        answer.dht_time = clock.now() if request.validate else clock.wall()
        return self._proven(answer, context.remote_id)

    async def rpc_find(
        self, request: dht_pb2.FindRequest, context: P2PContext
    ) -> dht_pb2.FindResponse:
        """Somebody looks for records; an empty answer for a stranger."""
        sender = context.remote_id
        if not self._admits(request, sender) or len(request.keys) > FIND_CAP:
            return dht_pb2.FindResponse()
        if any(len(key) != ID_BYTES for key in request.keys):
            return dht_pb2.FindResponse()
        await self._meet(request, sender)
        found = [self._found(DHTID.from_bytes(key), sender) for key in request.keys]
        return self._proven(dht_pb2.FindResponse(results=found, peer=self.node_info), sender)

    async def rpc_store(
        self, request: dht_pb2.StoreRequest, context: P2PContext
    ) -> dht_pb2.StoreResponse:
        """Somebody wants records kept; an empty answer for a stranger.

        What is meant for the cache is stored like the rest: a cache of strangers' making could
        hide what is stored.
        """
        sender = context.remote_id
        columns = (request.keys, request.subkeys, request.values, request.expiration_time)
        sizes = set(map(len, columns))
        if not self._admits(request, sender) or len(sizes) != 1 or max(sizes) > STORE_CAP:
            return dht_pb2.StoreResponse()
        await self._meet(request, sender)
        network = await self._context.networks.of(str(sender))
        kept = [self._keep(*row, str(sender), network) for row in zip(*columns, strict=True)]
        return self._proven(dht_pb2.StoreResponse(store_ok=kept, peer=self.node_info), sender)

    def _admits(self, request: Any, sender: PeerID) -> bool:
        node_id, peer = request.peer.node_id, str(sender)
        proof = self._context.key.proof(QUESTION, peer, self._peer)
        return (
            self._context.door.admits(peer, request.auth.nonce)
            and hmac.compare_digest(request.auth.signature, proof)
            and node_id in (b"", node_id_of(peer).to_bytes())
            and self._calls.allows(peer)
        )

    def _is_welcome(self, peer: str) -> bool:
        return not self._context.door.problem_with(peer)

    def _proven(self, answer: Any, asker: PeerID) -> Any:
        answer.auth.signature = self._context.key.proof(ANSWER, self._peer, str(asker))
        answer.auth.nonce = self._context.door.own_pass
        return answer

    async def _meet(self, request: Any, sender: PeerID) -> None:
        if request.peer.node_id:
            await self.update_routing_table(node_id_of(str(sender)), sender)

    def _found(self, key: DHTID, asker: PeerID) -> dht_pb2.FindResult:
        item = self.storage.get(key)
        result = dht_pb2.FindResult(type=dht_pb2.NOT_FOUND)
        if item is not None and isinstance(item.value, DictionaryDHTValue):
            result = dht_pb2.FindResult(
                type=dht_pb2.FOUND_DICTIONARY,
                value=self.serializer.dumps(item.value),
                expiration_time=item.expiration_time,
            )
        near = self.routing_table.get_nearest_neighbors(
            key, k=self.bucket_size, exclude=node_id_of(str(asker))
        )
        result.nearest_node_ids.extend(node_id.to_bytes() for node_id, _ in near)
        result.nearest_peer_ids.extend(peer_id.to_bytes() for _, peer_id in near)
        return result

    def _keep(
        self, key: bytes, tag: bytes, value: bytes, expiration: float, sender: str, network: str
    ) -> bool:
        entries = list(islice(self._entries(tag, value, expiration), PEERS_CAP))
        outcomes = [
            self._keep_one(key, subkey, value, expiration, sender=sender, network=network)
            for subkey, value, expiration in entries
        ]
        return bool(outcomes) and all(outcomes)

    def _entries(
        self, tag: bytes, value: bytes, expiration: float
    ) -> Iterator[tuple[Any, bytes, float]]:
        """The record under a tag, or all those of a dictionary; nothing for anything else."""
        try:
            if tag != self.IS_DICTIONARY:
                yield self.serializer.loads(tag), value, expiration
                return
            dictionary = self.serializer.loads(value)
        except Exception:  # noqa: BLE001 (an island: hivemind's reader fails in many ways on nonsense)
            return
        if isinstance(dictionary, DictionaryDHTValue):
            with dictionary.freeze():
                for subkey, entry in dictionary.items():
                    yield subkey, entry.value, entry.expiration_time

    def _keep_one(
        self,
        key: bytes,
        subkey: Any,
        value: bytes,
        expiration: float,
        *,
        sender: str,
        network: str,
    ) -> bool:
        if not isinstance(subkey, str) or len(key) != ID_BYTES:
            return False
        key_id = DHTID.from_bytes(key)
        if self.storage.holds(key_id, subkey, value, expiration):
            return True
        if not self._records.takes(sender):
            return False
        if not self._validate_record(key, self.serializer.dumps(subkey), value, expiration):
            return False
        is_direct = subkey == sender
        return self.storage.store_from(
            key_id, subkey, ValueWithExpiration(value, expiration), (network, is_direct)
        )

    # ------------------------------------------------------------ our own questions

    def get_stub(self, peer: PeerID) -> "_Stub":
        """What calls a peer: with our proof, and only for an answer with its own."""
        return _Stub(super().get_stub(peer), self._context, self._peer, str(peer))

    async def read_clock(self, peer: PeerID) -> float | None:
        """By how much a peer's wall clock is ahead of our time; None if it does not answer."""
        clock, before = self._context.clock, self._context.clock.now()
        request = dht_pb2.PingRequest(peer=self.node_info)
        try:
            answer = await self.get_stub(peer).rpc_ping(request, timeout=self.wait_timeout)
        except Exception as error:  # noqa: BLE001 (an island: hivemind's calls fail in many ways)
            logger.debug("peer %s does not tell the time: %r", peer, error)
            return None
        ahead: float = answer.dht_time - (before + clock.now()) / 2
        return ahead if answer.dht_time and math.isfinite(ahead) else None

    def sweep(self) -> None:
        """Drop what lives longer than any record may: our clock was ahead and was put back."""
        for storage in (self.storage, self.cache):
            storage.sweep(self._is_legal)

    def _is_legal(self, key: DHTID, subkey: Any, value: bytes, expiration: float) -> bool:
        tag = self.serializer.dumps(subkey)
        return bool(self._validate_record(key.to_bytes(), tag, value, expiration))

    async def call_find(self, peer: PeerID, keys: Collection[DHTID]) -> Any:
        """Ask a peer for records; nobody can end a search by claiming an endless expiration."""
        answers = await super().call_find(peer, keys)
        return answers and {
            key: (_bounded(item), self._honest(near)) for key, (item, near) in answers.items()
        }

    async def update_routing_table(
        self, node_id: DHTID | None, peer_id: PeerID, responded: bool = True
    ) -> None:
        """Let a peer in under the id that follows from its own, and under no other."""
        if self.is_distrusted(str(peer_id)) or not self._is_welcome(str(peer_id)):
            return
        if node_id is None or node_id == node_id_of(str(peer_id)):
            await super().update_routing_table(node_id, peer_id, responded)

    def strike(self, peer_id: PeerID) -> None:
        """Count that a peer said it keeps a record, and does not show it."""
        peer = str(peer_id)
        self._strikes[peer] += 1
        if self._strikes[peer] < DISTRUST_STRIKES:
            if len(self._strikes) > DISTRUSTED_CAP:
                del self._strikes[next(iter(self._strikes))]  # the one that came first
            return
        del self._strikes[peer]
        self._distrusted[peer] = time.monotonic() + DISTRUST_SECONDS
        if len(self._distrusted) > DISTRUSTED_CAP:
            self._distrusted.popitem(last=False)
        if (node_id := self.routing_table.get(peer_id=peer_id)) is not None:
            del self.routing_table[node_id]

    def absolve(self, peer_id: PeerID) -> None:
        """A peer has shown what it said it keeps."""
        self._strikes.pop(str(peer_id), None)

    def is_distrusted(self, peer: str) -> bool:
        """Whether a peer was found not to keep what it takes, lately."""
        return time.monotonic() < self._distrusted.get(peer, 0.0)

    def _honest(self, near: dict[DHTID, PeerID]) -> dict[DHTID, PeerID]:
        return {
            node_id: peer_id
            for node_id, peer_id in near.items()
            if node_id == node_id_of(str(peer_id))
            and not self.is_distrusted(str(peer_id))
            and self._is_welcome(str(peer_id))
        }

    def _validate_dictionary(self, key_bytes: bytes, dictionary: DictionaryDHTValue) -> bool:
        """Drop what is bad from an answer, and what is beyond the cap."""
        dictionary.maxsize = math.inf  # else an answer could make a search forget others
        with dictionary.freeze():
            for number, (subkey, (value, expiration)) in enumerate(list(dictionary.items())):
                tag = self.serializer.dumps(subkey)
                if number >= PEERS_CAP or not self._validate_record(
                    key_bytes, tag, value, expiration
                ):
                    del dictionary[subkey]
        return True

    @classmethod
    def _get_handle_name(cls, namespace: str | None, method_name: str) -> str:
        """As hivemind's own class: the name is part of the protocol."""
        name: str = DHTProtocol._get_handle_name.__func__(DHTProtocol, namespace, method_name)
        return name


class _Stub:
    """The three questions to one peer; an answer that proves or bounds nothing is none."""

    def __init__(self, stub: Any, context: ProtocolContext, own: str, peer: str) -> None:
        self._stub, self._peer, self._door = stub, peer, context.door
        key = context.key
        self._question = key.proof(QUESTION, own, peer)
        self._answer = key.proof(ANSWER, peer, own)

    async def rpc_ping(self, request: Any, **options: float) -> Any:
        """Ask whether the peer is there."""
        return await self._ask(self._stub.rpc_ping, request, options)

    async def rpc_store(self, request: Any, **options: float) -> Any:
        """Ask the peer to keep records, once we have seen that it is a member."""
        if self._door.has_to_introduce(self._peer):
            await self.rpc_ping(dht_pb2.PingRequest(), **options)
        return await self._ask(self._stub.rpc_store, request, options)

    async def rpc_find(self, request: Any, **options: float) -> Any:
        """Ask the peer for records, and for whom it knows near them."""
        answer = await self._ask(self._stub.rpc_find, request, options)
        if not all(map(_is_bounded, answer.results)):
            raise ValueError("an answer names too many peers, or too long ones")
        return answer

    async def _ask(
        self, call: Callable[..., Awaitable[Any]], request: Any, options: dict[str, float]
    ) -> Any:
        if problem := self._door.problem_with(self._peer):
            raise ValueError(problem)
        request.auth.signature, request.auth.nonce = self._question, self._door.own_pass
        answer = await call(request, **options)
        if not hmac.compare_digest(answer.auth.signature, self._answer):
            raise ValueError("an answer without the swarm's proof")
        if problem := self._door.problem_of(self._peer, answer.auth.nonce):
            raise ValueError(problem)
        return answer


def _share_clock() -> None:
    """Let hivemind's storage and searches expire records by our clock, not by the wall's."""
    node.get_dht_time = timed_storage.get_dht_time = CLOCK.now


def node_id_of(peer: str) -> DHTID:
    """A peer's one place in the DHT."""
    return DHTID.generate(peer)


def _is_bounded(result: dht_pb2.FindResult) -> bool:
    nodes, peers = result.nearest_node_ids, result.nearest_peer_ids
    return (
        len(nodes) == len(peers) <= BUCKET_SIZE
        and all(len(node) == ID_BYTES for node in nodes)
        and all(len(peer) <= PEER_ID_BYTES for peer in peers)
    )


def _bounded(item: ValueWithExpiration | None) -> ValueWithExpiration | None:
    if item is None or not isinstance(item.value, DictionaryDHTValue) or not item.value:
        return None
    latest = CLOCK.now() + TTL_CAP + SKEW_SECONDS
    return ValueWithExpiration(item.value, min(item.expiration_time, latest))
