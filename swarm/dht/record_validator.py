"""SwarmValidator: what every node demands of a record in the DHT before it keeps or believes it.

A stored value is: the record as msgpack (in private swarms sealed with the swarm's key, so that
outsiders can neither read nor make one), then a signature. Both are bound to key, subkey and
expiration, so nothing can be moved, renewed or cut.
"""

import math
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import msgpack
from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.dht.routing import DHTID

from swarm.dht.board import SKEW_SECONDS, known_keys, plain_key, shard_of
from swarm.records import RECORD_CAP, TTL_CAP, Manifest, Record, record_of_map
from swarm.trust.identity import Identity, is_founder, verify
from swarm.trust.swarm_key import SwarmKey

SIGNATURE_BYTES = 64
JUDGED = 4096  # verdicts to remember
DOMAIN = b"swarm record 1"


class SwarmValidator(RecordValidatorBase):  # type: ignore[misc]
    """Signs our records and judges everybody's."""

    def __init__(
        self,
        swarm: str,
        identity: Identity,
        key: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.key = SwarmKey(swarm, key)
        self._swarm = swarm
        self._identity = identity
        self._clock = clock
        # One search brings the same record from up to 20 replicas: judge it once.
        self._unworthy = lru_cache(JUDGED)(self._judge)
        self._tail = SIGNATURE_BYTES + self.key.overhead_bytes
        self._kinds = {
            DHTID.generate(name).to_bytes(): (name, kind)
            for name, kind in known_keys(self.key.name)
        }

    def sign_value(self, record: DHTRecord) -> bytes:
        """The value sealed (in a private swarm) and signed."""
        value = self.key.seal(record.value, _context(record))
        return value + self._identity.sign(_context(record, value))

    def strip_value(self, record: DHTRecord) -> bytes:
        """The plain value; empty if it cannot be unsealed."""
        return self.key.unseal(record.value[:-SIGNATURE_BYTES], _context(record)) or b""

    def validate(self, record: DHTRecord) -> bool:
        """Whether a record from anywhere obeys every rule; never raises."""
        return not self.problem_of(record)

    def problem_of(self, record: DHTRecord) -> str:
        """The first rule that a record breaks, in words; empty if it breaks none."""
        found = self._kinds.get(record.key)
        if found is None:
            return "the key does not belong to this swarm"
        name, kind = found
        peer = _peer_of(record.subkey)
        if peer is None:
            return "it is not under a peer id"
        if not isinstance(record.value, bytes) or not isinstance(record.expiration_time, float):
            return "it is not made of bytes and a time"
        if len(record.value) > RECORD_CAP:
            return f"it has {len(record.value)} bytes, more than {RECORD_CAP}"
        return (
            self._misplaced(name, kind, peer)
            or self._untimely(kind, record.expiration_time)
            or self._unworthy(record, peer)
        )

    def signed_record(self, key: str, peer: str, values: list[Any], expiration: float) -> DHTRecord:
        """A record as it would be stored under `key`."""
        stored = DHTRecord(
            DHTID.generate(key).to_bytes(), msgpack.packb(peer), msgpack.packb(values), expiration
        )
        return replace(stored, value=self.sign_value(stored))

    def _misplaced(self, name: str, kind: type[Record], peer: str) -> str:
        shard = name.removeprefix(plain_key(self.key.name, kind)).removeprefix("/")
        if shard and shard != shard_of(peer):
            return "it is in another peer's shard"
        if kind is Manifest and not is_founder(self._swarm, peer):
            return "only the founder publishes the manifest"
        return ""

    def _untimely(self, kind: type[Record], expiration: float) -> str:
        # An expired record is legal: others may return it beside live ones for a moment.
        longest = min(kind.TTL_SECONDS, TTL_CAP) + SKEW_SECONDS
        if math.isfinite(expiration) and expiration <= self._clock() + longest:
            return ""
        return f"it lives longer than {longest:.0f} s"

    def _judge(self, record: DHTRecord, peer: str) -> str:
        _, kind = self._kinds[record.key]
        return self._forged(record, peer) or _malformed(kind, self.strip_value(record))

    def _forged(self, record: DHTRecord, peer: str) -> str:
        if len(record.value) <= self._tail:
            return "it is not signed"
        value, signature = record.value[:-SIGNATURE_BYTES], record.value[-SIGNATURE_BYTES:]
        if self.key.unseal(value, _context(record)) is None:
            return "its author does not know the swarm's key"
        if not verify(peer, _context(record, value), signature):
            return "its signature is not that of its peer"
        return ""


def _context(record: DHTRecord, value: bytes = b"") -> bytes:
    """What a record is bound to, with its value for the signature and without for the seal."""
    parts = (record.key, record.subkey, value, struct.pack("!d", record.expiration_time))
    return DOMAIN + b"".join(struct.pack("!I", len(part)) + part for part in parts)


def _peer_of(subkey: bytes) -> str | None:
    """The peer id of a dictionary entry; None for a plain value or anything else."""
    peer = _unpacked(subkey)
    return peer if isinstance(peer, str) and msgpack.packb(peer) == subkey else None


def _malformed(kind: type[Record], value: bytes) -> str:
    try:
        record_of_map(kind, _unpacked(value))
    except ValueError as error:
        return f"it is no {kind.__name__}: {error}"
    return ""


def _unpacked(data: bytes) -> Any:
    """Plain msgpack, None for anything else: hivemind's own extension types are not welcome."""
    try:
        return msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException):
        return None
