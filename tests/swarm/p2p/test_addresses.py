"""Addresses: what a person types for where a node is reached, and what is said back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.p2p.addresses import (
    EVERY_ADDRESS,
    dialable,
    has_ipv6,
    home_of,
    is_enclosed,
    is_loopback,
    is_private,
    listening_host,
    listening_hosts,
    multiaddr_of,
    own_homes,
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
    assert listening_host("[2001:DB8::7]") == "2001:db8::7"
    assert listening_host("::") == listening_host("0.0.0.0") == EVERY_ADDRESS
    with pytest.raises(ValueError, match="not an address"):
        listening_host("my-host")


def test_a_host_reaches_itself_at_its_own_addresses() -> None:
    assert "/ip4/127.0.0.1/tcp/4001" in own_multiaddrs("0.0.0.0", 4001)
    assert own_multiaddrs("192.0.2.2", 5) == ("/ip4/192.0.2.2/tcp/5",)
    assert own_multiaddrs("2001:db8::7", 5) == ("/ip6/2001:db8::7/tcp/5",)


def test_every_address_is_one_of_both_families_where_the_machine_has_both() -> None:
    families = listening_hosts(EVERY_ADDRESS)
    assert families == (("0.0.0.0", "::") if has_ipv6() else ("0.0.0.0",))
    assert listening_hosts("::1") == ("::1",)


HOME, OTHER = "/ip4/192.168.7.20/tcp/1", "/ip4/10.3.2.1/tcp/1"
PUBLIC, LOCAL = "/ip4/198.51.100.7/tcp/1", "/ip4/127.0.0.1/tcp/1"
HOME_6 = "/ip6/fd00:1:2:3::9/tcp/1"


def test_private_addresses_are_dialed_only_from_the_network_that_they_are_in() -> None:
    given = (LOCAL, HOME, HOME_6, PUBLIC)
    assert dialable(given, {"192.168.7.0/24"}) == (HOME, PUBLIC, LOCAL)
    assert dialable(given, {"fd00:1:2:3::/64"}) == (HOME_6, PUBLIC, LOCAL)
    assert dialable(given, {"192.168.8.0/24"}) == (PUBLIC, LOCAL)


def test_where_only_private_addresses_are_known_all_are_tried() -> None:
    """A company routes between its networks; what else is there to try?"""
    assert dialable((LOCAL, OTHER, HOME), {"10.9.9.0/24"}) == (LOCAL, OTHER, HOME)
    assert dialable((OTHER, HOME), {"10.3.2.0/24"}) == (OTHER,)
    assert dialable((), ()) == ()


def test_a_network_is_enclosed_if_nothing_leads_to_it_from_outside() -> None:
    circuit = f"{PUBLIC}/p2p/RELAY/p2p-circuit"
    assert is_enclosed((HOME, LOCAL))
    assert not is_enclosed((HOME, circuit))
    assert not is_enclosed((HOME, PUBLIC))
    assert not is_enclosed((LOCAL,))  # that is said otherwise


def test_names_relays_and_nonsense_count_as_public() -> None:
    through = f"{PUBLIC}/p2p/RELAY/p2p-circuit"
    for address in ("/dns4/x/tcp/1", through, "/ip4/x/tcp/1", "nonsense", ""):
        assert not is_private(address)
        assert home_of(address) == ""
    assert is_private("/ip6/fe80::1/tcp/1")
    assert is_private("/ip4/100.64.0.1/tcp/1")
    assert home_of(LOCAL) == home_of(PUBLIC) == ""


def test_own_homes_are_networks_of_this_machine() -> None:
    assert all("/24" in home or "/64" in home for home in own_homes())


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=40) | st.from_regex(r"/ip[46]/[0-9a-f.:%]{0,20}/tcp/1"))
def test_no_address_of_a_stranger_stops_the_choice(address: str) -> None:
    assert dialable((address, PUBLIC), {"192.168.7.0/24"})


def test_only_this_machine_reaches_loopback() -> None:
    assert is_loopback("/ip4/127.0.0.1/tcp/1")
    assert not is_loopback("/ip4/192.0.2.2/tcp/1")
    assert not is_loopback("/dns4/localhost.example.org/tcp/1")
