"""Hardening: hivemind's storage and searches in the hands of a stranger."""

import asyncio
import math
import time
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.p2p import PeerID
from hivemind.utils.timed_storage import ValueWithExpiration

from swarm.dht import bounded_storage
from swarm.dht.bounded_storage import PEERS_CAP, SLACK, BoundedStorage, Standing
from swarm.dht.dht_protocol import ProtocolContext, SwarmProtocol, _bounded
from swarm.dht.peer_networks import Networks
from swarm.records import TTL_CAP
from swarm.testing.memory_network import peer_named
from swarm.trust.door import Door
from swarm.trust.network_clock import CLOCK
from swarm.trust.swarm_key import SwarmKey

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


class Hand:
    """A clock that a test moves."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def storage(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> BoundedStorage:
    monkeypatch.setattr(bounded_storage, "PEERS_CAP", 40)
    return BoundedStorage(hand, salt=b"lot")


def put(
    storage: BoundedStorage, peer: str, network: str = "", *, direct: bool = True, later: float = 0
) -> bool:
    record = ValueWithExpiration(b"", time.time() + 50 + later)
    return storage.store_from(KEY, peer, record, (network, direct))


def test_a_flood_of_fresh_peers_does_not_evict_those_that_were_here(
    storage: BoundedStorage, hand: Hand
) -> None:
    honest = [f"honest{number}" for number in range(20)]
    assert all(put(storage, peer) for peer in honest)
    hand.seconds = 61.0
    for number in range(1500):
        put(storage, f"sybil{number}")
    assert set(honest) < set(values_in(storage))
    assert len(values_in(storage)) == 40


def test_a_network_full_of_sybils_makes_room_for_others(
    storage: BoundedStorage, hand: Hand
) -> None:
    for number in range(40):
        put(storage, f"sybil{number}", "eve")
    hand.seconds = 61.0  # they have been here for a while, too
    honest = [f"honest{number}" for number in range(20)]
    assert all(put(storage, peer, f"network{peer}") for peer in honest)
    for number in range(40, 1500):
        put(storage, f"sybil{number}", "eve")
    assert set(honest) < set(values_in(storage))


def test_a_newcomer_has_a_chance_against_newcomers_of_its_own_network() -> None:
    """The fault: whoever filled the key first kept all others out."""
    storage, now = BoundedStorage(), time.time()
    for number in range(PEERS_CAP):
        storage.store(KEY, b"", now + 50, subkey=f"sybil{number}")
    taken = [storage.store(KEY, b"", now + 50, subkey=f"honest{number}") for number in range(5)]
    assert sum(taken) >= 3  # each is refused once in 1,500


def test_what_others_bring_goes_before_what_a_peer_brings_itself(
    storage: BoundedStorage, hand: Hand
) -> None:
    for number in range(40):
        put(storage, f"brought{number}", direct=False)
    hand.seconds = 61.0
    assert all(put(storage, f"own{number}") for number in range(40))
    assert not put(storage, "brought again", direct=False)


def test_a_full_key_takes_renewals(storage: BoundedStorage, hand: Hand) -> None:
    for number in range(40):
        put(storage, f"peer{number}")
    assert all(put(storage, peer, later=1) for peer in values_in(storage))


def test_a_renewal_by_others_does_not_lower_a_peer(storage: BoundedStorage, hand: Hand) -> None:
    put(storage, "peer", "home")
    put(storage, "peer", "elsewhere", direct=False, later=1)
    assert storage._standings[KEY]["peer"] == Standing("home", True, 0.0)


def test_standings_are_no_more_than_the_records(storage: BoundedStorage, hand: Hand) -> None:
    for number in range(3000):
        put(storage, f"peer{number}")
    assert len(storage._standings[KEY]) <= 40 + SLACK


def test_exactly_the_record_that_is_there_is_known() -> None:
    storage, until = BoundedStorage(), time.time() + 9
    storage.store(KEY, b"one", until, subkey="one")
    assert storage.holds(KEY, "one", b"one", until)
    assert not storage.holds(KEY, "one", b"one", until + 1)
    assert not storage.holds(KEY, "other", b"one", until)
    assert not storage.holds(b"else", "one", b"one", until)


async def guarded() -> Any:
    """A protocol whose validator takes b"good" only."""
    own = PeerID.from_base58(peer_named("own"))
    judge: Any = SimpleNamespace(validate=lambda record: record.value == b"good")
    context = ProtocolContext(
        SwarmKey("swarm"), Networks(nobody_is_connected), CLOCK, Door(str(own))
    )
    p2p: Any = SimpleNamespace(peer_id=own)
    return await SwarmProtocol.open(p2p, judge, context, client=True)


async def nobody_is_connected() -> dict[str, tuple[str, ...]]:
    return {}


def test_a_bad_record_does_not_hide_the_good_ones() -> None:
    entries = dictionary_of({"a": (b"good", 9e9), "b": (b"bad", 9e9)})
    assert asyncio.run(guarded())._validate_dictionary(KEY, entries)
    assert [subkey for subkey, _ in entries.items()] == ["a"]


def test_an_answer_cannot_make_a_search_forget() -> None:
    entries = DictionaryDHTValue(maxsize=1)
    asyncio.run(guarded())._validate_dictionary(KEY, entries)
    assert entries.maxsize == math.inf


def test_an_endless_expiration_is_bounded() -> None:
    entries = dictionary_of({"a": (b"good", time.time() + 5)})
    item = _bounded(ValueWithExpiration(entries, math.inf))
    assert item is not None
    assert item.expiration_time < time.time() + TTL_CAP + 10


def test_an_empty_or_plain_answer_is_no_answer() -> None:
    assert _bounded(ValueWithExpiration(DictionaryDHTValue(), math.inf)) is None
    assert _bounded(ValueWithExpiration(msgpack.packb("plain"), 1.0)) is None
