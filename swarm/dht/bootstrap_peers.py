"""Bootstrap peers: which members and relays a new invite names, and at which of their addresses."""

from collections.abc import Iterable, Mapping, Sequence

from swarm.p2p.addresses import is_loopback_at, is_private
from swarm.records import Capability, Relay

PEERS = 4  # named in an invite: three beside its maker's own
RELAYS = 2
ADDRESSES = 3  # of each


def bootstrap_addresses(
    own: Sequence[str], capabilities: Mapping[str, Capability], relays: Mapping[str, Relay]
) -> tuple[str, ...]:
    """Multiaddrs with /p2p/<id> of our own node (if there is one), and of others that stay.

    Others are first those that can be reached, of as many homes as there are, the longest there
    first; relays fill what places are left.
    """
    ours = {address.rpartition("/p2p/")[2] for address in own}
    there = {peer: seen for peer, seen in capabilities.items() if peer not in ours}
    found = [_best(own)] if own else []
    found += [_at(peer, there[peer].addresses) for peer in _steadiest(there)]
    found += [(address,) for address in relay_addresses(relays)]
    return tuple(address for each in [each for each in found if each][:PEERS] for address in each)


def relay_addresses(relays: Mapping[str, Relay]) -> tuple[str, ...]:
    """One multiaddr of each of the longest running relays."""
    running = {peer: relay for peer, relay in relays.items() if not relay.leaving}
    oldest = sorted(running, key=lambda peer: (running[peer].since, peer))
    known = [_at(peer, running[peer].addresses)[:1] for peer in oldest]
    return tuple(address for each in known for address in each)[:RELAYS]


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


def _at(peer: str, addresses: Iterable[str]) -> tuple[str, ...]:
    bare = (address.partition("/p2p/")[0] for address in addresses)
    return _best([f"{address}/p2p/{peer}" for address in bare if address.startswith("/")])


def _best(addresses: Sequence[str]) -> tuple[str, ...]:
    """The most useful addresses of one peer: public before private, loopback where all is so."""
    far = [each for each in addresses if not is_loopback_at(each)] or list(addresses)
    return tuple(sorted(dict.fromkeys(far), key=is_private)[:ADDRESSES])
