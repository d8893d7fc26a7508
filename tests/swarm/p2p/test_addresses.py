"""Addresses: what a person types for where a node is reached, and what is said back."""

import pytest

from swarm.p2p.addresses import (
    is_loopback,
    listening_host,
    multiaddr_of,
    own_multiaddrs,
    port_of,
    readable,
)


@pytest.mark.parametrize(
    ("typed", "multiaddr", "read"),
    [
        ("203.0.113.7:4001", "/ip4/203.0.113.7/tcp/4001", "203.0.113.7:4001"),
        (" node.example.org:80 ", "/dns4/node.example.org/tcp/80", "node.example.org:80"),
        ("[2001:db8::7]:4001", "/ip6/2001:db8::7/tcp/4001", "[2001:db8::7]:4001"),
        ("/ip4/203.0.113.7/tcp/4001", "/ip4/203.0.113.7/tcp/4001", "203.0.113.7:4001"),
        ("/ip4/1.2.3.4/udp/9/quic-v1", "/ip4/1.2.3.4/udp/9/quic-v1", "1.2.3.4:9"),
        ("/dns4/x/tcp/2", "/dns4/x/tcp/2", "x:2"),
        ("/ip4/1.2.3.4/tcp/9/p2p/12D3KooW", "/ip4/1.2.3.4/tcp/9", "1.2.3.4:9"),
    ],
)
def test_what_a_person_types_is_read_as_a_multiaddr_and_said_back(
    typed: str, multiaddr: str, read: str
) -> None:
    assert multiaddr_of(typed) == multiaddr
    assert readable(multiaddr) == read
    assert port_of(multiaddr) == int(read.rpartition(":")[2])


@pytest.mark.parametrize(
    ("typed", "cause"),
    [
        ("203.0.113.7", "lacks a port"),
        ("nonsense", "lacks a port"),
        ("", "is no address"),
        ("203.0.113.7:0", "0 is no port"),
        ("203.0.113.7:65536", "65536 is no port"),
        ("0.0.0.0:4001", "nobody reaches"),
        ("[::]:4001", "nobody reaches"),
        ("2001:db8::7:4001", "is no address"),
        ("/ip4/203.0.113.7", "is no address"),
        ("a b:4001", "is no address"),
        ("-x-:4001", "is no host"),
        ("http://x:80", "is no address"),
    ],
)
def test_what_is_no_address_is_refused_with_the_cause(typed: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        multiaddr_of(typed)


def test_a_node_listens_where_a_person_says() -> None:
    assert listening_host("localhost") == "127.0.0.1"
    assert listening_host(" 192.0.2.2 ") == "192.0.2.2"
    with pytest.raises(ValueError, match="IPv6"):
        listening_host("::1")
    with pytest.raises(ValueError, match="not an address"):
        listening_host("my-host")


def test_a_host_reaches_itself_at_its_own_addresses() -> None:
    assert "/ip4/127.0.0.1/tcp/4001" in own_multiaddrs("0.0.0.0", 4001)
    assert own_multiaddrs("192.0.2.2", 5) == ("/ip4/192.0.2.2/tcp/5",)


def test_only_this_machine_reaches_loopback() -> None:
    assert is_loopback("/ip4/127.0.0.1/tcp/1")
    assert not is_loopback("/ip4/192.0.2.2/tcp/1")
    assert not is_loopback("/dns4/localhost.example.org/tcp/1")
