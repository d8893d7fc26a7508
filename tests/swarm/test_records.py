"""Records: what goes on the board comes back the same, and nonsense is a ValueError."""

import contextlib
import math
from dataclasses import asdict
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.hardware import Device, Link
from swarm.records import (
    KINDS,
    RECORD_CAP,
    TERM_CAP,
    TTL_CAP,
    Advert,
    Capability,
    Lease,
    Manifest,
    Member,
    PlanRef,
    Record,
    Relay,
    StageAdvert,
    record_of_map,
    record_to_list,
)
from swarm.testing.memory_network import peer_named

PEER = peer_named("anybody")
DEVICE = Device(0, "cuda", "NVIDIA GeForce RTX 3090 Ti", 24 * 2**30, 9.3e11, 1.4e14)
LINK = Link(PEER, 0.0123, 1.2e8)
STAGE = StageAdvert(0, 4, [Member(PEER, 0, 4, 10), Member(PEER, 1, 4, 10)], 0.01, 1000, 2)
RECORDS: list[Record] = [
    Manifest("swarm-tiny", "d" * 64, "f32", 1.7e9),
    Capability("d" * 64, [DEVICE], [LINK], "host", True, 1.7e9, "name", "0.1.0"),
    Advert("d" * 64, [STAGE], 3),
    Lease(4, 1.7e9),
    PlanRef(4, 0, "d" * 64, 12345),
    Relay(["/ip4/203.0.113.7/tcp/4001"], 1.7e9, "name", "0.1.0", 2),
]


def test_every_kind_of_record_is_covered_here() -> None:
    assert {type(record) for record in RECORDS} == set(KINDS)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_the_same_from_a_map_and_from_a_list(record: Record) -> None:
    for values in (asdict(record), record_to_list(record)):
        assert record_of_map(type(record), msgpack.unpackb(msgpack.packb(values))) == record


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_no_record_outlives_the_cap(record: Record) -> None:
    assert record.TTL_SECONDS <= TTL_CAP


def test_eight_devices_and_eight_links_fit_with_room_for_a_signature() -> None:
    record = Capability("d" * 64, [DEVICE] * 8, [LINK] * 8, "h" * 32, True, 1.7e9, "n" * 32, "0.1")
    assert len(msgpack.packb(record_to_list(record))) < RECORD_CAP - 400


def test_a_list_may_end_before_the_fields_that_have_a_default() -> None:
    short = record_to_list(RECORDS[1])[:6]
    assert record_of_map(Capability, short) == Capability(
        "d" * 64, [DEVICE], [LINK], "host", True, 1.7e9
    )


def test_a_device_of_an_older_peer_computes_in_f32() -> None:
    values = record_to_list(RECORDS[1])
    values[1] = [device[:-1] for device in values[1]]  # as it was before there were dtypes
    assert record_of_map(Capability, values) == RECORDS[1]
    assert DEVICE.dtype == "f32"


@pytest.mark.parametrize("dtype", ["f8", "", "F32", 4, None])
def test_a_device_of_an_unknown_dtype_is_refused(dtype: object) -> None:
    values = record_to_list(RECORDS[1])
    values[1] = [[*device[:-1], dtype] for device in values[1]]
    with pytest.raises(ValueError, match=r"dtype|is not a str"):
        record_of_map(Capability, values)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_the_fields_that_a_later_version_adds_are_left_out(record: Record) -> None:
    values = record_to_list(record)
    assert record_of_map(type(record), [*values, "new", [1], {"a": 2}]) == record
    assert record_of_map(type(record), asdict(record) | {"new": 3}) == record


def test_the_fields_that_a_later_version_adds_to_a_device_are_left_out() -> None:
    values = record_to_list(RECORDS[1])
    values[1] = [[*device, "new"] for device in values[1]]
    assert record_of_map(Capability, values) == RECORDS[1]


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(KINDS), plain)
def test_arbitrary_values_raise_nothing_but_a_value_error(kind: type[Record], values: Any) -> None:
    with contextlib.suppress(ValueError):
        record_of_map(kind, values)


@given(st.sampled_from(RECORDS), st.data())
def test_a_record_with_one_arbitrary_field_travels_or_is_a_value_error(
    record: Record, data: st.DataObject
) -> None:
    values = asdict(record)
    values[data.draw(st.sampled_from(sorted(values)))] = data.draw(plain)
    try:
        found = record_of_map(type(record), values)
    except ValueError:
        return
    assert record_of_map(type(record), record_to_list(found)) == found


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Lease, {"term": 1}),
        (Lease, {"term": -1, "until": 2.0}),
        (Lease, {"term": TERM_CAP + 1, "until": 2.0}),
        (PlanRef, [TERM_CAP + 1, 0, "d", 1]),
        (PlanRef, [1, -1, "d", 1]),
        (Advert, ["d", [], TERM_CAP + 1]),
        (Capability, ["d", [], [], "h", True, 0.0, "", "", False, TERM_CAP + 1]),
        (Lease, {"term": True, "until": 2.0}),
        (Lease, {"term": 1, "until": math.nan}),
        (Lease, {"term": 1, "until": math.inf}),
        (Lease, "lease"),
        (Advert, {"model": "d", "stages": [[4, 4, [[PEER, 0, 1, 1]], 0.0, 0, 0]], "term": 1}),
        (Advert, {"model": "d", "stages": [[0, 4, [], 0.0, 0, 0]], "term": 1}),
        (Advert, {"model": "d", "stages": [[0, 4, [[PEER, 0, 1, 1]], -1.0, 0, 0]], "term": 1}),
        (Advert, {"model": "d", "stages": [1], "term": 1}),
        (Capability, ["d", [], [], "h", 1, 0.0]),
        (Capability, ["d", [[0, "cpu", "name", 1, -1.0, 1.0]], [], "h", True, 0.0]),
        (Capability, ["d", [], [[PEER, 0.1, 0.0]], "h", True, 0.0]),
        (Capability, ["d", [], [[PEER, 0.1, 1.0]] * 65, "h", True, 0.0]),
    ],
)
def test_nonsense_is_a_value_error(kind: type[Record], values: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        record_of_map(kind, values)
