"""Networks: from which network each connected peer comes, to share scarce places fairly."""

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable, Iterable

from swarm.errors import Unreachable

LOOK_SECONDS = 1.0  # between two looks at the daemon's connections
IPV4_BITS, IPV6_BITS = 24, 48  # what one customer of a provider usually has at most

Connected = Callable[[], Awaitable[dict[str, tuple[str, ...]]]]  # multiaddrs of each peer


class Networks:
    """Asks the daemon for its connections, at most once a second."""

    def __init__(self, connected: Connected, clock: Callable[[], float] = time.monotonic) -> None:
        self._connected = connected
        self._clock = clock
        self._looked = -LOOK_SECONDS
        self._found: dict[str, str] = {}  # no more than there are connections
        self._lock = asyncio.Lock()

    async def of(self, peer: str) -> str:
        """The network of a peer; empty if it is not known (yet)."""
        async with self._lock:
            if peer not in self._found and self._clock() - self._looked >= LOOK_SECONDS:
                self._looked = self._clock()
                await self._look()
        return self._found.get(peer, "")

    async def _look(self) -> None:
        try:
            connected = await self._connected()
        except Unreachable:
            return
        self._found = {peer: network_of(addresses) for peer, addresses in connected.items()}


def network_of(addresses: Iterable[str]) -> str:
    """The network of the first multiaddr with an IP address; empty if none has one."""
    for address in addresses:
        _, kind, host, *_ = (*address.split("/"), "", "")
        if kind in ("ip4", "ip6") and (network := _network_of_host(host)):
            return network
    return ""


def _network_of_host(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    bits = IPV4_BITS if address.version == 4 else IPV6_BITS
    return str(ipaddress.ip_network((address, bits), strict=False))
