"""DhtBoard: the board on hivemind's DHT, one DHTNode on the peer's own p2pd."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable
from contextlib import suppress
from itertools import count
from typing import Any, TypeVar

from hivemind.dht.crypto import DHTRecord
from hivemind.dht.node import DHTNode
from hivemind.p2p import PeerID
from hivemind.utils.timed_storage import ValueWithExpiration

from swarm.dht.board import SKEW_SECONDS, R, has_shards, keys_to_publish, plain_key, shard_keys
from swarm.dht.bootstrap import Bootstrap, KnownPeers
from swarm.dht.dht_protocol import BUCKET_SIZE, ProtocolContext, SwarmProtocol, node_id_of
from swarm.dht.peer_networks import Networks
from swarm.dht.record_validator import SwarmValidator
from swarm.dht.replicas import Replicas
from swarm.errors import LocalProtocolError, Unreachable
from swarm.p2p.address_book import AddressBook
from swarm.p2p.addresses import CIRCUIT
from swarm.p2p.p2p_daemon import P2PDaemon
from swarm.records import Capability, Record, Relay, record_of_map, record_to_list
from swarm.task_set import TaskSet
from swarm.trust.identity import Identity
from swarm.trust.network_clock import CLOCK, STEERED_SECONDS, NetworkClock

WAIT_SECONDS = 1.0  # for one peer's answer to one DHT call
FIRST_WAIT_SECONDS = 4.0  # for the first peer's answer, which calls us back
CALL_SECONDS = 10.0  # for a whole search
CLOSE_SECONDS = 3.0
BOOK_CLOSE_SECONDS = 1.0
CLOCK_SECONDS = 5.0  # between looks at our clock
BOOK_SECONDS = 10.0  # between looks at whom we are connected with
RELAY_LOOKS = 6  # of these to one look for relays
STEP_SECONDS = 0.001  # between the expirations of two records
CLOCKS_ASKED = 7  # peers, about a jump of our clock
READ_BACK_SECONDS = 5.0  # least life of a record that is worth reading back

NOBODY = KnownPeers()

logger = logging.getLogger(__name__)
T = TypeVar("T")


class DhtBoard:
    """The Board of one peer; closing it leaves the daemon running."""

    def __init__(self, daemon: P2PDaemon, validator: SwarmValidator, clock: NetworkClock) -> None:
        self.peer = daemon.peer
        self._daemon = daemon
        self._swarm = validator.key.name  # as it stands in the keys
        self._validator = validator
        self._clock = clock
        self._recorded: frozenset[str] = frozenset()  # peers that showed a capability, as last read
        self._node: Any = None  # a DHTNode; hivemind is untyped
        self._replicas: Replicas
        self._expirations: dict[type[Record], float] = {}
        self._seen: dict[type[Record], tuple[int, float]] = {}  # how many peers, and when
        self._addresses: dict[str, tuple[str, ...]] = {}  # of the peers that records speak of
        self._book = AddressBook(None, validator.key.swarm, daemon.peer)
        self._bootstrap: Bootstrap
        self._is_client = False
        self._tasks = TaskSet()

    @classmethod
    async def open(
        cls,
        daemon: P2PDaemon,
        swarm: str,
        identity: Identity,
        *,
        key: str = "",
        known: KnownPeers = NOBODY,
        client: bool = False,
    ) -> "DhtBoard":
        """Join the swarm's DHT; holds tasks until closed; raises Unreachable, BadInput.

        Where none of the known peers answers, a peer that has words for it begins alone, and goes
        on trying.
        """
        self = cls(daemon, SwarmValidator(swarm, identity, key, CLOCK.now), CLOCK)
        self._book = known.book or self._book
        self._is_client = client
        await self._make_node()
        self._bootstrap = Bootstrap(daemon, self._is_let_in, self._present, known, self._book)
        try:
            await self._enter()
        except BaseException:
            await self.close()
            raise
        self._tasks.create("keeping joined", self._bootstrap.keep(self._look_around))
        self._tasks.create("keeping time", self._keep_time())
        self._tasks.create("keeping the address book", self._keep_book())
        return self

    async def publish(self, record: Record, *, ttl_seconds: float | None = None) -> None:
        """Show a signed record; raises LocalProtocolError, Unreachable."""
        kind = type(record)
        ttl = kind.TTL_SECONDS if ttl_seconds is None else min(ttl_seconds, kind.TTL_SECONDS)
        keys = keys_to_publish(self._swarm, kind, self.peer, await self._peers_seen(kind))
        expiration = self._expiration(kind, ttl)
        signed = [self._signed(record, key, expiration) for key in keys]
        self._expirations[kind] = expiration
        confirmed = ttl >= READ_BACK_SECONDS
        calls = (self._replicas.store(each, confirmed=confirmed) for each in signed)
        if not all(await _in_time(asyncio.gather(*calls))):
            raise Unreachable(
                f"No peer takes our {kind.KEY} record.", "Is the clock of this machine right?"
            )

    async def read(self, kind: type[R], *, latest: bool = True) -> dict[str, R]:
        """The live records of a kind by peer; raises Unreachable."""
        found = await self._read_keys([plain_key(self._swarm, kind)], latest)
        if has_shards(kind, len(found)):
            keys = [plain_key(self._swarm, kind), *shard_keys(self._swarm, kind)]
            found = await self._read_keys(keys, latest)
        self._seen[kind] = len(found), time.monotonic()
        is_revoked = self._daemon.door.is_revoked
        records = {
            peer: _record_of(kind, entry.value)
            for peer, entry in found.items()
            if not is_revoked(peer)
        }
        for peer, record in records.items():
            self._note_addresses(peer, record)
        if kind is Capability:
            self._recorded = frozenset(records)
        return records

    @property
    def neighbours(self) -> int:
        """How many peers the routing table holds; 0 means alone."""
        return len(self._met)

    @property
    def joined(self) -> asyncio.Event:
        """Set as soon as another peer of the swarm has been met."""
        return self._bootstrap.joined

    @property
    def _met(self) -> frozenset[str]:
        return frozenset(map(str, self._node.protocol.routing_table.uid_to_peer_id.values()))

    async def reopen(self) -> None:
        """Go on over what is now the daemon's p2pd, with all that we keep for others.

        Who was known before is greeted meanwhile; whoever cannot be reached finds us by himself.
        """
        before = self._node.protocol
        known = set(before.routing_table.uid_to_peer_id.values())
        self._end_node()  # its p2pd is gone: there is nobody to say goodbye through
        await self._make_node()
        self._node.protocol.storage, self._node.protocol.cache = before.storage, before.cache
        self._tasks.create("greeting known peers", self._greet(known))
        self._bootstrap.hurry()

    async def close(self) -> None:
        """Leave the DHT; returns within seconds even if the daemon hangs."""
        await self._tasks.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(BOOK_CLOSE_SECONDS):
                await self._write_book()
        self._end_node()
        if not self._daemon.ended.is_set():  # hivemind would wait for a dead daemon
            with suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._node.shutdown()

    def _end_node(self) -> None:
        if self._node.cache_refresh_task is not None:
            self._node.cache_refresh_task.cancel()
        self._node.is_alive = False

    def _expiration(self, kind: type[Record], ttl: float) -> float:
        """When a record ends: later than our last one, for replicas keep what expires last.

        A last one beyond what anybody takes was made while the clock was ahead: it counts no more.
        """
        now, last = self._clock.now(), self._expirations.get(kind, 0.0)
        is_possible = last + STEP_SECONDS <= now + kind.TTL_SECONDS + SKEW_SECONDS
        return max(now + ttl, last + STEP_SECONDS) if is_possible else now + ttl

    async def _make_node(self) -> None:
        """Make our part of the DHT, with every guard in place, before anybody is met."""
        p2p = self._daemon.p2p
        node: Any = await DHTNode.create(
            p2p=p2p,
            node_id=node_id_of(self.peer),
            bucket_size=BUCKET_SIZE,
            cache_nearest=0,
            client_mode=True,  # hivemind's own protocol serves nothing: ours takes its place
            record_validator=self._validator,
        )
        networks = Networks(self._daemon.connected)
        context = ProtocolContext(self._validator.key, networks, self._clock, self._daemon.door)
        protocol = await SwarmProtocol.open(p2p, self._validator, context, client=self._is_client)
        protocol.wait_timeout = WAIT_SECONDS
        node.protocol = protocol
        self._node, self._replicas = node, Replicas(node, self.peer)

    async def _enter(self) -> None:
        """Be known to the first peers; raises Unreachable, BadInput."""
        found = await self._bootstrap.enter()
        if found.welcomes:
            await self._look_around()

    async def _greet(self, peers: set[Any]) -> None:
        """Ask peers to know us, and look for more."""
        await asyncio.gather(*map(self._node.protocol.call_ping, peers))
        await self._look_around()

    async def _is_let_in(self, peer: str) -> bool:
        """Ask a peer to let us in: it calls us back, and tells the time; raises ValidationError."""
        protocol = self._node.protocol
        protocol.wait_timeout = FIRST_WAIT_SECONDS
        try:
            return bool(await protocol.call_ping(PeerID.from_base58(peer), validate=True))
        finally:
            protocol.wait_timeout = WAIT_SECONDS

    async def _look_around(self) -> None:
        """Meet the peers near us in the DHT."""
        with suppress(Unreachable):
            await _in_time(self._node.find_nearest_nodes([self._node.node_id]))

    def _present(self) -> frozenset[str]:
        """The peers of the swarm that are there; those on the board only if we reach anybody."""
        return self._met and self._met | self._recorded - {self.peer}

    def _note_addresses(self, peer: str, record: Record) -> None:
        """Let daemon and book know where a peer says it is."""
        if isinstance(record, Capability):
            addresses = (*record.addresses, *(f"{relay}{CIRCUIT}" for relay in record.relays))
            self._daemon.note_addresses(peer, addresses)
        elif isinstance(record, Relay):
            addresses = tuple(record.addresses)
        else:
            return
        if self._addresses.get(peer) != addresses:
            self._book.note(peer, addresses)
            self._addresses[peer] = addresses

    def _signed(self, record: Record, key: str, expiration: float) -> DHTRecord:
        """A record as it is stored under a key; raises LocalProtocolError."""
        name = record.KEY
        try:
            signed = self._validator.signed_record(
                key, self.peer, record_to_list(record), expiration
            )
        except (ValueError, OverflowError, TypeError) as error:  # of msgpack
            raise LocalProtocolError(f"Our {name} record does not travel: {error}.") from error
        if problem := self._validator.problem_of(signed):
            raise LocalProtocolError(f"Our {name} record cannot be published: {problem}.")
        return signed

    async def _peers_seen(self, kind: type[Record]) -> int:
        """How many peers have such a record, looked up at most once in a record's life."""
        if not kind.SHARDED:
            return 0
        if time.monotonic() - self._seen.get(kind, (0, -math.inf))[1] > kind.TTL_SECONDS:
            await self.read(kind)
        return self._seen[kind][0]

    async def _read_keys(self, keys: list[str], latest: bool) -> dict[str, ValueWithExpiration]:
        enough = math.inf if latest else None  # None: any live copy will do
        answers = await _in_time(self._node.get_many(keys, sufficient_expiration_time=enough))
        found: dict[str, ValueWithExpiration] = {}
        now = self._clock.now()
        for answer in answers.values():
            for peer, entry in (answer.value if answer else {}).items():
                before = found.get(peer)
                is_later = before is None or before.expiration_time < entry.expiration_time
                if is_later and entry.expiration_time > now:
                    found[peer] = entry
        return found

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_SECONDS)
            await self._check_clock()

    async def _keep_book(self) -> None:
        for look in count():
            await asyncio.sleep(BOOK_SECONDS)
            if look % RELAY_LOOKS == 0:
                with suppress(Unreachable):
                    await self.read(Relay)
            await self._write_book()

    async def _write_book(self) -> None:
        """Remember who is there, and whom we are connected with, if there is news in it."""
        present = self._present()
        self._addresses = {p: a for p, a in self._addresses.items() if p in present}
        for peer, addresses in self._addresses.items():
            self._book.note(peer, addresses)
        with suppress(Unreachable):
            connected = await self._daemon.connected()
            for peer in connected.keys() & self._addresses.keys():
                self._book.note_met(peer, connected[peer])
        if self._book.is_due:
            await self._book.write()

    async def _check_clock(self) -> None:
        """Follow the wall clock as it is steered; ask peers what to think of a jump."""
        ahead: list[float] = []
        if self._clock.has_jumped:
            protocol = self._node.protocol
            known = list(protocol.routing_table.uid_to_peer_id.values())
            asked = random.sample(known, min(CLOCKS_ASKED, len(known)))
            answers = await asyncio.gather(*(protocol.read_clock(peer) for peer in asked))
            ahead = [answer for answer in answers if answer is not None]
        jump = self._clock.settle(ahead)
        if abs(jump) > STEERED_SECONDS:
            logger.warning("the clock was put forward by %.0f s, and we follow", jump)
        if jump < -STEERED_SECONDS:
            self._node.protocol.sweep()


def _record_of(kind: type[R], values: object) -> R:
    record = record_of_map(kind, values)
    assert isinstance(record, kind)
    return record


async def _in_time(call: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(CALL_SECONDS):
            return await call
    except TimeoutError as error:
        raise Unreachable("The swarm's peers do not answer.", "Check the network.") from error
