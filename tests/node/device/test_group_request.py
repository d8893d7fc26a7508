"""A request of a group's leader keeps its bytes, and a stranger's is read strictly or refused."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.device.endpoint import Endpoint
from node.device.group_request import GROUP_CAP, RANKS_CAP, GroupRequest, GroupWord
from swarm.errors import RemoteProtocolError
from swarm.plan import MOST, Assignment, Shard, Stage
from swarm.testing.memory_network import peer_named

STAGE = Stage(
    0, 4, (Shard(f"{peer_named('a')}/0", 4, 4), Shard(f"{peer_named('b')}/7", 4, 4)), dtype="bf16"
)
ENDPOINT = Endpoint(("10.0.0.1",), "abc", 4000, b"der")
PAIR = (ENDPOINT, ENDPOINT)
REQUEST = GroupRequest.of(GroupWord.LOAD, "g", Assignment(STAGE, 1), PAIR)
WIRE: dict[str, Any] = msgpack.unpackb(REQUEST.to_bytes())


def test_a_request_travels_as_these_fields_in_this_order() -> None:
    named = {"hosts": ["10.0.0.1"], "machine": "abc", "port": 4000, "certificate": b"der"}
    fields = {"word": "load", "group": "g", "device": 7, "ranks": [named, named]}
    fields |= {"start": 0, "end": 4, "rank": 1, "dtype": "bf16"}
    assert REQUEST.to_bytes() == msgpack.packb(fields)
    assert GroupRequest.from_bytes(REQUEST.to_bytes()) == REQUEST


def test_what_an_older_leader_leaves_out_and_a_later_one_adds_is_passed_over() -> None:
    old = {name: value for name, value in WIRE.items() if name not in ("dtype", "ranks")}
    read = GroupRequest.from_wire(old)
    assert (read.dtype, read.endpoints) == ("f32", ())
    assert GroupRequest.from_wire(WIRE | {"more": 1}) == REQUEST


@pytest.mark.parametrize(
    "change",
    [
        {"word": "unload"},
        {"word": 1},
        {"group": ""},
        {"group": "g" * (GROUP_CAP + 1)},
        {"group": b"g"},
        {"device": "0"},
        {"device": []},
        {"device": -1},
        {"device": True},
        {"start": 0.0},
        {"end": MOST},
        {"rank": None},
        {"dtype": 7},
        {"dtype": "f" * 17},
        {"ranks": None},
        {"ranks": {}},
        {"ranks": [7]},
        {"ranks": [ENDPOINT.to_wire() | {"port": 0}]},
        {"ranks": [ENDPOINT.to_wire()] * (RANKS_CAP + 1)},
    ],
)
def test_a_request_with_a_wrong_field_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        GroupRequest.from_bytes(msgpack.packb(WIRE | change))


@pytest.mark.parametrize("missing", ["word", "group", "device", "start", "end", "rank"])
def test_a_request_that_lacks_a_field_is_refused(missing: str) -> None:
    with pytest.raises(RemoteProtocolError):
        GroupRequest.from_wire({name: value for name, value in WIRE.items() if name != missing})


@given(st.binary(max_size=64))
def test_no_request_raises_anything_else(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        GroupRequest.from_bytes(payload)


def test_another_number_of_ranks_than_the_plans_is_refused() -> None:
    assert REQUEST.require_endpoints(2) == PAIR
    for ranks in (0, 1, 3):
        with pytest.raises(RemoteProtocolError):
            REQUEST.require_endpoints(ranks)
