"""Bootstrap peers: which members and relays a new invite names, and at which of their addresses."""

from collections.abc import Container, Iterable, Mapping, Sequence

from swarm.p2p.addresses import CIRCUIT, by_peer, home_of, is_loopback_at, is_private, peer_part
from swarm.records import Capability, Relay

PEERS = 4  # named in an invite: three beside its maker's own
RELAYS = 2
ADDRESSES = 3  # of each


def bootstrap_addresses(
    own: Sequence[str],
    capabilities: Mapping[str, Capability],
    relays: Mapping[str, Relay],
    remembered: Iterable[str] = (),
    homes: Container[str] = (),
) -> tuple[str, ...]:
    """Multiaddrs with /p2p/<id> of our own node (if there is one), and of others that stay.

    Others are first those that can be reached, of as many homes as there are, the longest there
    first; relays fill what places are left, and then peers that are remembered. Private addresses
    are those of our own home networks, unless there is nothing else.
    """
    ours = set(by_peer(own))
    there = {peer: seen for peer, seen in capabilities.items() if peer not in ours}
    found = [tuple(own)]
    found += [_at(peer, there[peer].addresses) for peer in _steadiest(there)]
    found += [(address,) for address in relay_addresses(relays)]
    found += map(tuple, by_peer(remembered).values())
    known: dict[str, tuple[str, ...]] = {}
    for each in filter(None, found):
        known.setdefault(peer_part(each[0]), _far(each))
    useful = [_useful(each, homes) for each in known.values()]
    chosen = list(filter(None, useful)) or list(known.values())
    return tuple(address for each in chosen[:PEERS] for address in _best(each))


def relay_addresses(relays: Mapping[str, Relay], remembered: Iterable[str] = ()) -> tuple[str, ...]:
    """One multiaddr of each of the longest running relays, and of those that are remembered."""
    running = {peer: relay for peer, relay in relays.items() if not relay.leaving}
    oldest = sorted(running, key=lambda peer: (running[peer].since, peer))
    known = [_best(_at(peer, running[peer].addresses))[:1] for peer in oldest]
    known += [(at[0],) for peer, at in by_peer(remembered).items() if peer not in running]
    return tuple(address for each in known for address in each)[:RELAYS]


def relays_in(addresses: Iterable[str]) -> tuple[str, ...]:
    """The relays that addresses through them name."""
    found = (address.partition(CIRCUIT) for address in addresses)
    return tuple(dict.fromkeys(relay for relay, circuit, _ in found if circuit))


def without_circuits(addresses: Iterable[str]) -> tuple[str, ...]:
    """Those that are dialed as they stand."""
    return tuple(address for address in addresses if CIRCUIT not in address)


def _steadiest(capabilities: Mapping[str, Capability]) -> list[str]:
    """Peers in the order in which they are worth naming: one of each home before a second."""
    homes: dict[str, int] = {}
    ranked: list[tuple[bool, int, int, str]] = []
    there = {peer: seen for peer, seen in capabilities.items() if not seen.leaving}
    for peer in sorted(there, key=lambda peer: (there[peer].since, peer)):
        home = there[peer].home or there[peer].host
        homes[home] = homes.get(home, 0) + 1
        ranked.append((not there[peer].reachable, homes[home], len(ranked), peer))
    return [peer for *_, peer in sorted(ranked)]


def _useful(addresses: Iterable[str], homes: Container[str]) -> tuple[str, ...]:
    """Those that say anything to somebody who is elsewhere, or at home with us."""
    return tuple(
        address
        for address in addresses
        if not is_private(address) or is_loopback_at(address) or home_of(address) in homes
    )


def _at(peer: str, addresses: Iterable[str]) -> tuple[str, ...]:
    bare = (address.partition("/p2p/")[0] for address in addresses)
    return tuple(f"{address}/p2p/{peer}" for address in bare if address.startswith("/"))


def _best(addresses: Sequence[str]) -> tuple[str, ...]:
    """The most useful addresses of one peer: public before private, loopback where all is so."""
    return tuple(sorted(dict.fromkeys(_far(addresses)), key=is_private)[:ADDRESSES])


def _far(addresses: Sequence[str]) -> tuple[str, ...]:
    return tuple(each for each in addresses if not is_loopback_at(each)) or tuple(addresses)
