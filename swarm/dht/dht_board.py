"""DhtBoard: the board on hivemind's DHT, one DHTNode on the peer's own p2pd."""

import asyncio
import logging
import math
import random
import re
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from hivemind.dht.crypto import DHTRecord
from hivemind.dht.node import DHTNode
from hivemind.dht.protocol import ValidationError
from hivemind.p2p import PeerID
from hivemind.utils.timed_storage import ValueWithExpiration

from swarm.dht.board import SKEW_SECONDS, R, has_shards, keys_to_publish, plain_key, shard_keys
from swarm.dht.dht_protocol import BUCKET_SIZE, ProtocolContext, SwarmProtocol, node_id_of
from swarm.dht.peer_networks import Networks
from swarm.dht.record_validator import SwarmValidator
from swarm.dht.replicas import Replicas
from swarm.errors import BadInput, LocalProtocolError, Unreachable
from swarm.invites import peer_of_address
from swarm.p2p.p2p_daemon import P2PDaemon
from swarm.records import Capability, Record, record_of_map, record_to_list
from swarm.task_set import TaskSet
from swarm.trust.identity import Identity
from swarm.trust.network_clock import CLOCK, STEERED_SECONDS, NetworkClock

WAIT_SECONDS = 1.0  # for one peer's answer to one DHT call
FIRST_WAIT_SECONDS = 4.0  # for the first peer's answer, which calls us back
JOIN_SECONDS = 15.0
CALL_SECONDS = 10.0  # for a whole search
CLOSE_SECONDS = 3.0
REJOIN_SECONDS = 5.0  # between looks at the routing table
OTHERS_SECONDS = 1.0  # for further peers of an invite, once one has answered
STEP_SECONDS = 0.001  # between the expirations of two records
CLOCKS_ASKED = 7  # peers, about a jump of our clock
READ_BACK_SECONDS = 5.0  # least life of a record that is worth reading back
LOOKS_TOLD = 120  # of so many in vain one is told
KNOWN_PEERS = 64  # peers to come back to

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
        self._node: Any = None  # a DHTNode; hivemind is untyped
        self._replicas: Replicas
        self._expirations: dict[type[Record], float] = {}
        self._seen: dict[type[Record], tuple[int, float]] = {}  # how many peers, and when
        self._initial_peers: tuple[str, ...] = ()
        self._known_peers: list[Any] = []  # ids of peers to come back to
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
        initial_peers: Sequence[str] = (),
        client: bool = False,
    ) -> "DhtBoard":
        """Join the swarm's DHT; holds a task until closed; raises Unreachable, BadInput."""
        self = cls(daemon, SwarmValidator(swarm, identity, key, CLOCK.now), CLOCK)
        self._initial_peers, self._is_client = tuple(initial_peers), client
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                await self._join()
        except TimeoutError as error:
            raise _nobody() from error
        except ValidationError as error:
            raise _explained(error) from error
        self._tasks.create("keeping joined", self._keep_joined())
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
        records = {peer: _record_of(kind, entry.value) for peer, entry in found.items()}
        for peer, record in records.items():
            if isinstance(record, Capability):
                self._daemon.note_addresses(peer, record.addresses)
        return records

    @property
    def neighbours(self) -> int:
        """How many peers the routing table holds; 0 means alone."""
        return len(self._node.protocol.routing_table.uid_to_peer_id)

    async def reopen(self) -> None:
        """Go on over what is now the daemon's p2pd, with all that we keep for others.

        Who was known before is greeted meanwhile; whoever cannot be reached finds us by himself.
        """
        before = self._node.protocol
        known = list(before.routing_table.uid_to_peer_id.values())
        self._known_peers = known[:KNOWN_PEERS] or self._known_peers
        self._end_node()  # its p2pd is gone: there is nobody to say goodbye through
        await self._make_node()
        self._node.protocol.storage, self._node.protocol.cache = before.storage, before.cache
        greeting = self._greet({*self._first_peers(), *self._known_peers})
        self._tasks.create("greeting known peers", greeting)

    async def close(self) -> None:
        """Leave the DHT; returns within seconds even if the daemon hangs."""
        await self._tasks.close()
        self._end_node()
        if not self._daemon.ended.is_set():  # hivemind would wait for a dead daemon
            with suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
                await asyncio.wait_for(self._node.shutdown(), CLOSE_SECONDS)

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

    async def _join(self) -> None:
        """Make our part of the DHT, with every guard in place, before anybody is met."""
        await self._make_node()
        self._node.protocol.wait_timeout = FIRST_WAIT_SECONDS
        if self._initial_peers:
            await self._meet_first_peers()
        self._node.protocol.wait_timeout = WAIT_SECONDS

    async def _make_node(self) -> None:
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

    async def _meet_first_peers(self) -> None:
        """Be known to the peers of the invite; raises Unreachable, ValidationError.

        One that calls our clock wrong does not keep us out if as many others say it is right.
        """
        ping = self._node.protocol.call_ping
        peers = {PeerID.from_base58(peer_of_address(each)) for each in self._initial_peers}
        outcomes = await _first_and_others(
            {asyncio.create_task(ping(peer, validate=True)) for peer in peers}
        )
        refusals = [outcome for outcome in outcomes if isinstance(outcome, ValidationError)]
        welcomes = [outcome for outcome in outcomes if isinstance(outcome, int)]
        if len(refusals) > len(welcomes):
            raise refusals[0]
        if not welcomes:
            raise _nobody()
        await self._node.find_nearest_nodes([self._node.node_id])

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

    async def _keep_joined(self) -> None:
        """Come back to known peers when the routing table has run empty: hivemind never does."""
        looks = 0  # in vain, one after the other
        while True:
            await asyncio.sleep(REJOIN_SECONDS)
            await self._check_clock()
            known = list(self._node.protocol.routing_table.uid_to_peer_id.values())
            self._known_peers = known[:KNOWN_PEERS] or self._known_peers
            if known or not (self._known_peers or self._initial_peers):
                looks = 0
                continue
            if looks % LOOKS_TOLD == 0:
                logger.warning("no other peer is there; looking for those known before")
            looks += 1
            await self._rejoin()

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

    async def _rejoin(self) -> None:
        for address in self._initial_peers:
            with suppress(Unreachable):
                await self._daemon.connect(address)
        await self._greet({*self._first_peers(), *self._known_peers})

    def _first_peers(self) -> list[Any]:
        return [PeerID.from_base58(peer_of_address(address)) for address in self._initial_peers]

    async def _greet(self, peers: set[Any]) -> None:
        """Ask peers to know us, and look for more."""
        await asyncio.gather(*map(self._node.protocol.call_ping, peers))
        with suppress(Unreachable):
            await _in_time(self._node.find_nearest_nodes([self._node.node_id]))


def _record_of(kind: type[R], values: object) -> R:
    record = record_of_map(kind, values)
    assert isinstance(record, kind)
    return record


def _explained(error: ValidationError) -> BadInput | Unreachable:
    clocks = re.search(r"local: ([\d.]+), peer: ([\d.]+)", str(error))
    if clocks is None:
        return Unreachable(
            "The swarm's peers cannot reach this machine.",
            "Forward a port of your router to it and say so:"
            " --port 4001 --announce YOUR-PUBLIC-ADDRESS:4001",
        )
    offset = float(clocks[1]) - float(clocks[2])
    side = "ahead of" if offset > 0 else "behind"
    return BadInput(
        f"This machine's clock is {abs(offset):.1f} s {side} the swarm's.",
        "Set the clock (for example with NTP) and try again.",
    )


def _nobody() -> Unreachable:
    return Unreachable(
        "No peer in the invite answers.",
        "Check the network, or ask for a fresh invite; a private swarm's key has to be right.",
    )


async def _first_and_others(pings: "set[asyncio.Task[Any]]") -> list[Any]:
    """The outcomes of pings: until one is welcome, and of those that follow it soon."""
    waiting, done = set(pings), set[asyncio.Task[Any]]()
    while waiting and not any(ping.exception() is None and ping.result() for ping in done):
        finished, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        done |= finished
    if waiting:
        await asyncio.wait(waiting, timeout=OTHERS_SECONDS)
    for ping in waiting:
        ping.cancel()
    return await asyncio.gather(*pings, return_exceptions=True)


async def _in_time(call: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(call, CALL_SECONDS)
    except TimeoutError as error:
        raise Unreachable("The swarm's peers do not answer.", "Check the network.") from error
