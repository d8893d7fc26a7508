"""Relays: who stands behind a router and needs some, and which peers may be them."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from swarm.invites import peer_of_address
from swarm.p2p.addresses import CIRCUIT, is_private
from swarm.p2p.tcp_probe import tcp_problem
from swarm.records import Capability, Relay

RELAYS_CAP = 4  # given to p2pd, which asks each for a place, and no other one later


def is_probably_private(announced: Sequence[str], peers: Iterable[str], own: Iterable[str]) -> bool:
    """Whether a machine with these addresses stands behind a router, before anybody can be asked.

    It does if it has private addresses alone and its swarm lives at public ones.
    """
    has_public = not all(map(is_private, own))
    return not announced and not has_public and any(not is_private(peer) for peer in peers)


def relays_among(
    relays: Mapping[str, Relay], capabilities: Mapping[str, Capability], known: Iterable[str]
) -> tuple[str, ...]:
    """Multiaddrs, with /p2p/<id>, of who may carry connections to us, the best first.

    Peers that do nothing else, then nodes that others have dialed, then those that we know anyway.
    """
    found = [(peer, each) for peer, relay in relays.items() for each in relay.addresses]
    found += [
        (peer, each)
        for peer, capability in capabilities.items()
        if capability.reachable
        for each in capability.addresses
    ]
    named = [f"{address.partition('/p2p/')[0]}/p2p/{peer}" for peer, address in found]
    chosen: dict[str, str] = {}
    for address in (*named, *known):
        if not is_private(address) and CIRCUIT not in address:
            chosen.setdefault(peer_of_address(address), address)
    return tuple(chosen.values())[:RELAYS_CAP]


async def answering(relays: Sequence[str]) -> tuple[str, ...]:
    """Those of the relays at whose addresses anything listens; all of them if there are none.

    p2pd asks none for a place, for minutes, until it has met all that it was given: one that is
    gone would keep it from the others.
    """
    problems = await asyncio.gather(*map(tcp_problem, relays))
    there = [relay for relay, problem in zip(relays, problems, strict=True) if not problem]
    return tuple(there or relays)
