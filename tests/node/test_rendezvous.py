"""What members of a group tell each other is read strictly: nonsense is the peer's fault."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.rendezvous import CERTIFICATE_CAP, door_of, ranks_of
from swarm.errors import RemoteProtocolError

RANK: dict[str, Any] = {"host": "10.0.0.1", "port": 4000, "certificate": b"der"}
DOOR = RANK | {"machine": "abc"}


def test_a_door_and_ranks_are_read() -> None:
    assert door_of(msgpack.packb(DOOR)) == DOOR
    assert ranks_of([RANK, RANK], 2) == [RANK, RANK]


@pytest.mark.parametrize(
    "change",
    [
        {"port": 0},
        {"port": 65536},
        {"port": "4000"},
        {"port": True},
        {"host": 7},
        {"host": "x" * 256},
        {"certificate": b""},
        {"certificate": bytes(CERTIFICATE_CAP + 1)},
        {"certificate": "der"},
        {"more": 1},
    ],
)
def test_a_door_that_leads_nowhere_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        door_of(msgpack.packb(DOOR | change))
    with pytest.raises(RemoteProtocolError):
        ranks_of([RANK, RANK | change], 2)


def test_another_number_of_ranks_is_refused() -> None:
    for ranks in ([], [RANK], [RANK] * 3, None, {0: RANK, 1: RANK}):
        with pytest.raises(RemoteProtocolError):
            ranks_of(ranks, 2)


@given(st.binary(max_size=64))
def test_no_answer_raises_anything_else(answer: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        door_of(answer)
