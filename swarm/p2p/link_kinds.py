"""Kinds of links: direct, punched or relayed, as the connections that are open say it."""

from collections.abc import Iterable, Mapping, Sequence

from swarm.hardware import DIRECT, PUNCHED, RELAYED
from swarm.p2p.addresses import CIRCUIT, is_private
from swarm.records import Capability, Relay

OBSERVERS = 4  # public hosts that libp2p wants to have seen our address before it believes in it


def is_direct(addresses: Iterable[str]) -> bool:
    """Whether one of the open connections to a peer is not through a relay."""
    return any(CIRCUIT not in each for each in addresses)


def kind_of(addresses: Sequence[str], *, are_both_private: bool) -> str:
    """How a connected peer is reached; between two routers only a punched hole is direct."""
    if not is_direct(addresses):
        return RELAYED
    direct = [each for each in addresses if CIRCUIT not in each]
    is_outside = all(not is_private(each) for each in direct)
    return PUNCHED if are_both_private and is_outside else DIRECT


def observers_among(connected: Mapping[str, Sequence[str]]) -> int:
    """How many hosts outside, with an address each, see from where we come."""
    hosts = {
        each.split("/")[2]
        for addresses in connected.values()
        for each in addresses
        if CIRCUIT not in each and not is_private(each)
    }
    return len(hosts)


def public_hosts_among(capabilities: Mapping[str, Capability], relays: Mapping[str, Relay]) -> int:
    """At how many hosts outside there are peers that others can dial."""
    nodes = {peer: each.addresses for peer, each in capabilities.items() if each.reachable}
    return observers_among(nodes | {peer: each.addresses for peer, each in relays.items()})


def why_relayed(public_hosts: int) -> str:
    """Why two peers behind routers are not connected directly, as far as numbers say."""
    if public_hosts < OBSERVERS:
        hosts = "one public host" if public_hosts == 1 else f"{public_hosts} public hosts"
        return f"{hosts} only: hole punching needs four public peers"
    return "no hole could be punched: a router may give each connection another port"


def why_not_direct(one: Capability, other: Capability, public_hosts: int) -> str:
    """Why two peers are connected through a relay, as far as their records say."""
    if one.reachable or other.reachable:
        return "one of them can be dialed from elsewhere: a firewall may be between them"
    if one.home and one.home == other.home:
        return "their private addresses do not answer: a router may keep its machines apart"
    return why_relayed(public_hosts)
