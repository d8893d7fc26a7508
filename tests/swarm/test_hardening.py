"""Hardening: hivemind's storage and searches in the hands of a stranger."""

import asyncio
import math
import time
from types import SimpleNamespace
from typing import Any

import msgpack
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.utils.timed_storage import ValueWithExpiration

from swarm.hardening import PEERS_CAP, BoundedStorage, _bounded, harden
from swarm.records import TTL_CAP

KEY = b"key"


def dictionary_of(entries: dict[str, tuple[bytes, float]]) -> DictionaryDHTValue:
    dictionary = DictionaryDHTValue()
    for subkey, (value, expiration) in entries.items():
        dictionary.store(subkey, value, expiration)
    return dictionary


def values_in(storage: DHTLocalStorage) -> dict[str, bytes]:
    item = storage.get(KEY)
    return {subkey: entry.value for subkey, entry in item.value.items()} if item else {}


def test_the_later_record_of_a_peer_stays() -> None:
    storage, now = BoundedStorage(), time.time()
    assert storage.store(KEY, b"old", now + 5, subkey="peer")
    assert storage.store(KEY, b"new", now + 9, subkey="peer")
    assert not storage.store(KEY, b"old", now + 5, subkey="peer")
    assert values_in(storage) == {"peer": b"new"}


def test_an_older_record_does_not_cut_a_newer_one_short() -> None:
    storage, now = BoundedStorage(), time.time()
    storage.store(KEY, b"new", now + 9, subkey="peer")
    storage.store(KEY, b"old", now + 0.02, subkey="peer")
    time.sleep(0.04)
    assert values_in(storage) == {"peer": b"new"}


def test_a_record_that_is_there_already_counts_as_stored() -> None:
    storage, now = BoundedStorage(), time.time()
    storage.store(KEY, b"same", now + 9, subkey="peer")
    assert storage.store(KEY, b"same", now + 9, subkey="peer")
    assert not storage.store(KEY, b"else", now + 9, subkey="peer")


def test_a_search_does_not_write_into_the_storage() -> None:
    storage, now = BoundedStorage(), time.time()
    storage.store(KEY, b"one", now + 9, subkey="one")
    storage.get(KEY).value.store("other", b"other", now + 9)
    assert values_in(storage) == {"one": b"one"}


def test_a_full_key_takes_renewals_but_no_newcomers() -> None:
    storage, now = BoundedStorage(), time.time()
    for number in range(PEERS_CAP):
        storage.store(KEY, b"", now + 5, subkey=f"peer{number}")
    assert not storage.store(KEY, b"", now + 5, subkey="newcomer")
    assert storage.store(KEY, b"", now + 6, subkey="peer3")


def test_records_that_came_while_a_node_started_are_adopted() -> None:
    before, now = DHTLocalStorage(), time.time()
    before.store(KEY, b"one", now + 5, subkey="one")
    before.store(b"plain", b"value", now + 5)
    after = BoundedStorage.adopt(before)
    assert values_in(after) == {"one": b"one"}
    assert after.get(b"plain") is None


def hardened(answer: Any) -> Any:
    """A protocol whose validator takes b"good" only and whose peers give one answer."""

    async def find(peer: object, keys: object) -> Any:
        return answer

    protocol = SimpleNamespace(
        storage=DHTLocalStorage(),
        cache=DHTLocalStorage(),
        call_find=find,
        serializer=DHTProtocol.serializer,
        _validate_record=lambda key, subkey, value, expiration: value == b"good",
    )
    harden(SimpleNamespace(protocol=protocol))
    return protocol


def test_a_bad_record_does_not_hide_the_good_ones() -> None:
    entries = dictionary_of({"a": (b"good", 9e9), "b": (b"bad", 9e9)})
    assert hardened(None)._validate_dictionary(KEY, entries)
    assert [subkey for subkey, _ in entries.items()] == ["a"]


def test_an_answer_cannot_make_a_search_forget() -> None:
    entries = DictionaryDHTValue(maxsize=1)
    hardened(None)._validate_dictionary(KEY, entries)
    assert entries.maxsize == math.inf


def test_an_endless_expiration_is_bounded() -> None:
    entries = dictionary_of({"a": (b"good", time.time() + 5)})
    answer: Any = {KEY: (ValueWithExpiration(entries, math.inf), {})}
    item, _ = asyncio.run(hardened(answer).call_find("peer", [KEY]))[KEY]
    assert item.expiration_time < time.time() + TTL_CAP + 10


def test_an_empty_or_plain_answer_is_no_answer() -> None:
    assert _bounded(ValueWithExpiration(DictionaryDHTValue(), math.inf)) is None
    assert _bounded(ValueWithExpiration(msgpack.packb("plain"), 1.0)) is None
    assert asyncio.run(hardened(None).call_find("peer", [KEY])) is None
