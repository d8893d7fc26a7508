"""SwarmValidator: what a stranger may not put into the DHT."""

import math
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hivemind.dht.crypto import DHTRecord
from hivemind.dht.routing import DHTID
from hypothesis import given
from hypothesis import strategies as st

from swarm.dht.board import shard_keys, shard_of
from swarm.dht.record_validator import SwarmValidator
from swarm.records import RECORD_CAP, Capability, Lease, Manifest, Record, record_to_list
from swarm.trust.identity import Identity, swarm_id

NOW = 1_000_000.0
FOUNDER, STRANGER = Identity.throwaway(), Identity.throwaway()
SWARM = swarm_id("test", FOUNDER.peer)
JUDGE = SwarmValidator(SWARM, FOUNDER, clock=lambda: NOW)
LEASE = Lease(1, NOW)


def signed(
    record: Record = LEASE,
    author: Identity = STRANGER,
    *,
    key: str = "",
    subkey: str = "",
    seconds: float = 10.0,
    secret: str = "",
) -> DHTRecord:
    writer = SwarmValidator(SWARM, author, secret)
    key = key or f"{writer.key.name}/{record.KEY}"
    values = record_to_list(record)
    return writer.signed_record(key, subkey or author.peer, values, NOW + seconds)


def hashed(key: str) -> bytes:
    data: bytes = DHTID.generate(key).to_bytes()
    return data


def test_an_honest_record_is_kept_and_read() -> None:
    record = signed()
    assert JUDGE.problem_of(record) == ""
    assert msgpack.unpackb(JUDGE.strip_value(record)) == record_to_list(LEASE)


def test_a_record_under_another_peers_name_is_refused() -> None:
    assert "signature" in JUDGE.problem_of(signed(subkey=FOUNDER.peer))


def test_a_record_moved_to_another_peer_is_refused() -> None:
    moved = replace(signed(), subkey=msgpack.packb(FOUNDER.peer))
    assert "signature" in JUDGE.problem_of(moved)


def test_a_signature_replayed_under_another_key_is_refused() -> None:
    replayed = replace(signed(), key=hashed(f"{SWARM}/plan"))
    assert "signature" in JUDGE.problem_of(replayed)


@pytest.mark.parametrize("seconds", [-5.0, 0.001, 3.0])
def test_a_signature_replayed_with_another_expiration_is_refused(seconds: float) -> None:
    record = signed()
    renewed = replace(record, expiration_time=record.expiration_time + seconds)
    assert "signature" in JUDGE.problem_of(renewed)


def test_a_record_with_another_value_is_refused() -> None:
    one, other = signed(), signed(Lease(2, NOW))
    assert "signature" in JUDGE.problem_of(replace(one, value=other.value[:-64] + one.value[-64:]))


def test_an_unsigned_record_is_refused() -> None:
    record = signed()
    assert "not signed" in JUDGE.problem_of(replace(record, value=b""))
    assert "signature" in JUDGE.problem_of(replace(record, value=JUDGE.strip_value(record) * 9))


def test_a_record_above_two_kibibytes_is_refused() -> None:
    manifest = Manifest("m" * RECORD_CAP, "d", "f32", NOW)
    assert "bytes" in JUDGE.problem_of(signed(manifest, FOUNDER))


@pytest.mark.parametrize("seconds", [Lease.TTL_SECONDS + 3.1, 3600.0, math.inf, math.nan])
def test_a_record_that_lives_too_long_is_refused(seconds: float) -> None:
    assert "lives longer" in JUDGE.problem_of(signed(seconds=seconds))


def test_clocks_may_differ_by_three_seconds() -> None:
    assert JUDGE.validate(signed(seconds=Lease.TTL_SECONDS + 2.9))


@pytest.mark.parametrize("subkey", [None, b"bytes", 1, ["list"], {"a": 1}])
def test_a_plain_value_or_a_foreign_subkey_is_refused(subkey: Any) -> None:
    assert "peer id" in JUDGE.problem_of(replace(signed(), subkey=msgpack.packb(subkey)))


def test_a_whole_dictionary_in_one_record_is_refused() -> None:
    assert "peer id" in JUDGE.problem_of(replace(signed(), subkey=b""))


@pytest.mark.parametrize("key", ["planner", "{}/", "{}/plan/0", "other/planner"])
def test_an_unknown_key_is_refused(key: str) -> None:
    assert "key" in JUDGE.problem_of(signed(key=key.format(SWARM)))


def test_only_the_founder_publishes_the_manifest() -> None:
    manifest = Manifest("model", "digest", "f32", NOW)
    assert JUDGE.validate(signed(manifest, FOUNDER))
    assert "founder" in JUDGE.problem_of(signed(manifest, STRANGER))


def test_a_peer_stands_in_its_own_shard_only() -> None:
    record = Capability("digest", [], [], "host", True, NOW)
    for number, key in enumerate(shard_keys(SWARM, Capability)):
        problem = JUDGE.problem_of(signed(record, key=key))
        assert bool(problem) == (f"{number:x}" != shard_of(STRANGER.peer))


@pytest.mark.parametrize("values", [[], {}, None, 1, [1], ["1", 2.0], {"term": 1, "extra": 2}])
def test_a_value_that_is_no_record_is_refused(values: Any) -> None:
    writer = SwarmValidator(SWARM, STRANGER)
    record = writer.signed_record(f"{SWARM}/planner", STRANGER.peer, values, NOW)
    assert "no Lease" in JUDGE.problem_of(record)


def test_extension_types_of_msgpack_are_refused() -> None:
    values: Any = msgpack.ExtType(0x50, b"")
    record = SwarmValidator(SWARM, STRANGER).signed_record(
        f"{SWARM}/planner", STRANGER.peer, values, NOW
    )
    assert "no Lease" in JUDGE.problem_of(record)


def test_an_expired_record_is_no_lie() -> None:
    assert JUDGE.validate(signed(seconds=-60))


class TestAPrivateSwarm:
    judge = SwarmValidator(SWARM, FOUNDER, "secret", clock=lambda: NOW)

    def test_a_member_is_believed(self) -> None:
        record = signed(secret="secret")
        assert self.judge.validate(record)
        assert msgpack.unpackb(self.judge.strip_value(record)) == record_to_list(LEASE)

    def test_a_stranger_without_the_key_is_not(self) -> None:
        assert not self.judge.validate(signed())
        assert "key" in self.judge.problem_of(signed(secret="guess"))

    def test_a_seal_from_another_record_does_not_help(self) -> None:
        other = signed(Lease(2, NOW), secret="secret")
        moved = replace(other, expiration_time=other.expiration_time + 1)
        assert "key" in self.judge.problem_of(moved)

    def test_an_outsider_sees_neither_what_it_says_nor_which_swarm_it_is(self) -> None:
        record = signed(Lease(2, NOW), secret="secret", key="plain name")
        assert msgpack.packb(record_to_list(Lease(2, NOW))) not in record.value
        assert JUDGE.problem_of(self.own_record()) == "the key does not belong to this swarm"
        assert SWARM not in self.judge.key.name

    def test_a_public_swarm_refuses_sealed_records(self) -> None:
        moved = replace(self.own_record(), key=hashed(f"{SWARM}/planner"))
        assert not JUDGE.validate(moved)

    def own_record(self) -> DHTRecord:
        return signed(secret="secret")


@given(st.binary(max_size=30), st.binary(max_size=70), st.binary(max_size=300), st.floats())
def test_no_bytes_pass_or_raise(key: bytes, subkey: bytes, value: bytes, moment: float) -> None:
    assert not JUDGE.validate(DHTRecord(key, subkey, value, moment))
    assert not JUDGE.validate(DHTRecord(signed().key, subkey, value, moment))
    assert not JUDGE.validate(replace(signed(), value=value, expiration_time=moment))


@pytest.mark.parametrize(("field", "value"), [("value", "text"), ("expiration_time", 10**400)])
def test_values_of_a_wrong_type_are_refused(field: str, value: Any) -> None:
    changes: dict[str, Any] = {field: value}
    assert not JUDGE.validate(replace(signed(), **changes))
