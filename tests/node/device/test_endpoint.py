"""What members of a group tell each other is read strictly, and leads to where they are."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.device.endpoint import CERTIFICATE_CAP, HOSTS_CAP, Endpoint, Reach, hosts_in
from swarm.errors import PeerLost, RemoteProtocolError
from swarm.testing.memory_network import peer_named

LEADER, FOLLOWER = peer_named("leader"), peer_named("follower")
ENDPOINT = Endpoint(("10.0.0.1", "node.example.org"), "abc", 4000, b"der")
WIRE = ENDPOINT.to_wire()


def test_an_endpoint_is_read_as_it_was_written() -> None:
    assert Endpoint.from_bytes(msgpack.packb(WIRE)) == ENDPOINT
    assert Endpoint.from_bytes(ENDPOINT.to_bytes()) == ENDPOINT


def test_a_field_of_a_later_version_is_ignored() -> None:
    assert Endpoint.from_bytes(msgpack.packb(WIRE | {"more": 1})) == ENDPOINT


@pytest.mark.parametrize(
    "change",
    [
        {"port": 0},
        {"port": 65536},
        {"port": "4000"},
        {"port": True},
        {"hosts": "10.0.0.1"},
        {"hosts": [7]},
        {"hosts": ["x" * 256]},
        {"hosts": ["10.0.0.1"] * (HOSTS_CAP + 1)},
        {"hosts": ["10.0.0.1\n"]},
        {"hosts": ["user@host"]},
        {"hosts": [""]},
        {"hosts": ["10.0.0.256"]},
        {"hosts": ["127.1"]},  # a resolver reads 127.0.0.1
        {"hosts": ["2130706433"]},  # and here, too
        {"machine": 7},
        {"machine": "x" * 256},
        {"certificate": b""},
        {"certificate": bytes(CERTIFICATE_CAP + 1)},
        {"certificate": "der"},
    ],
)
def test_an_endpoint_that_leads_nowhere_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        Endpoint.from_bytes(msgpack.packb(WIRE | change))


@pytest.mark.parametrize("missing", list(WIRE))
def test_an_endpoint_that_lacks_a_field_is_refused(missing: str) -> None:
    with pytest.raises(RemoteProtocolError):
        Endpoint.from_wire({name: value for name, value in WIRE.items() if name != missing})


@given(st.binary(max_size=64))
def test_no_answer_raises_anything_else(answer: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Endpoint.from_bytes(answer)


def test_hosts_are_read_out_of_multiaddrs() -> None:
    known = (
        "/ip4/10.0.0.1/tcp/4001/p2p/12D3",
        "/ip4/10.0.0.1/udp/4001/quic-v1/p2p/12D3",
        "/dns4/node.example.org/tcp/4001",
        "/ip4/10.0.0.9/tcp/4001/p2p/12D3/p2p-circuit/p2p/12D4",  # a relay's
        "/ip6/::1/tcp/4001",
        "/ip4",
        "",
    )
    assert hosts_in(known) == ("10.0.0.1", "node.example.org")


def test_a_leader_that_listens_for_its_own_machine_only_is_named_with_what_it_gave() -> None:
    async def story() -> None:
        async def connections() -> Mapping[str, Sequence[str]]:
            return {}

        async def addresses() -> Sequence[str]:
            return ()

        reach = Reach("other", addresses, connections)
        lonely = Endpoint(("127.0.0.1",), "one", 4001, b"der")
        with pytest.raises(PeerLost, match=r"no address to dial there \(127.0.0.1\)") as lost:
            await reach.ranks([LEADER, FOLLOWER], [lonely, ENDPOINT], 1)
        assert "--announce" in lost.value.next_step
        found = await reach.ranks([LEADER, FOLLOWER], [lonely, ENDPOINT], 0)
        assert found[0].hosts == ()  # the leader dials nobody

    asyncio.run(story())
