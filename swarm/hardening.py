"""Hardening: what hivemind's DHT node needs mended before it may listen to strangers.

Storage: one record for each peer and key, a cap on peers per key, and two faults less: an older
record cannot cut a newer one short, and a search does not write into what is stored.
Answers: a bad record is dropped instead of hiding the good ones beside it, and nobody can end a
search, or stay in the cache, by claiming an endless expiration for a whole key.
"""

import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from hivemind.dht.node import DHTNode
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.utils.timed_storage import ValueWithExpiration

from swarm.board import SKEW_SECONDS
from swarm.records import TTL_CAP

PEERS_CAP = 1500  # under one key: 1,500 records of 2 KiB stay below hivemind's 4 MiB answers


class BoundedStorage(DHTLocalStorage):  # type: ignore[misc]
    """Keeps the record of each peer under each key that expires last, for so many peers."""

    def store_subkey(self, key: Any, subkey: Any, value: bytes, expiration_time: float) -> bool:
        """Keep a record unless a later one of its peer is there or the key is full."""
        item = super().get(key)
        if item is None or not isinstance(item.value, DictionaryDHTValue):
            entries = DictionaryDHTValue()
            entries.store(subkey, value, expiration_time)
            return bool(super().store(key, entries, expiration_time))
        entries = item.value
        known = entries.get(subkey)
        if known is not None and known.expiration_time >= expiration_time:
            return bool(known.value == value)  # a replica may have been quicker than its author
        if known is None and len(entries) >= PEERS_CAP:
            return False
        if expiration_time > entries.latest_expiration_time:
            super().store(key, entries, expiration_time)
        return bool(entries.store(subkey, value, expiration_time))

    def get(self, key: Any) -> Any:
        """A copy of what is stored, for searches to merge into."""
        item = super().get(key)
        if item is None or not isinstance(item.value, DictionaryDHTValue):
            return item
        copy = DictionaryDHTValue()
        for subkey, (value, expiration) in item.value.items():
            copy.store(subkey, value, expiration)
        return ValueWithExpiration(copy, item.expiration_time)

    @classmethod
    def adopt(cls, storage: DHTLocalStorage) -> "BoundedStorage":
        """A bounded storage with the records that a fresh node took in while it started."""
        bounded = cls()
        for key, item in storage.items():
            if isinstance(item.value, DictionaryDHTValue):
                for subkey, (value, expiration) in item.value.items():
                    bounded.store_subkey(key, subkey, value, expiration)
        return bounded


def harden(node: DHTNode) -> None:
    """Replace the parts of a fresh node that trust strangers."""
    protocol = node.protocol
    protocol.storage = BoundedStorage.adopt(protocol.storage)
    protocol.cache = BoundedStorage.adopt(protocol.cache)
    protocol._validate_dictionary = _dropping_bad_records(protocol)
    protocol.call_find = _with_bounded_expirations(protocol.call_find)


def _dropping_bad_records(protocol: DHTProtocol) -> Callable[[bytes, DictionaryDHTValue], bool]:
    def validate(key: bytes, dictionary: DictionaryDHTValue) -> bool:
        dictionary.maxsize = math.inf  # else an answer could make a search forget others
        with dictionary.freeze():
            for subkey, (value, expiration) in list(dictionary.items()):
                if not protocol._validate_record(
                    key, protocol.serializer.dumps(subkey), value, expiration
                ):
                    del dictionary[subkey]
        return True

    return validate


def _with_bounded_expirations(
    find: Callable[[Any, Any], Awaitable[Any]],
) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call_find(peer: Any, keys: Any) -> Any:
        answers = await find(peer, keys)
        return answers and {key: (_bounded(item), near) for key, (item, near) in answers.items()}

    return call_find


def _bounded(item: ValueWithExpiration | None) -> ValueWithExpiration | None:
    if item is None or not isinstance(item.value, DictionaryDHTValue) or not item.value:
        return None
    latest = time.time() + TTL_CAP + SKEW_SECONDS
    return ValueWithExpiration(item.value, min(item.expiration_time, latest))
