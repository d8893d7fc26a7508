"""Endpoint: where a member of a group listens, and at which addresses it is to be dialed."""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgpack

from node.worker.messages import Rank
from swarm.errors import PeerLost, RemoteProtocolError
from swarm.p2p.addresses import CIRCUIT

PORTS = 65536
CERTIFICATE_CAP = 4096  # bytes
NAME_CAP = 255  # characters
HOSTS_CAP = 16  # of one member: a machine with containers has many
LOOPBACK = "127.0.0.1"
RESOLVE_SECONDS = 3.0
HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
DIALABLE = ("ip4", "dns4", "dns")  # group sockets speak IPv4

Addresses = Mapping[str, Sequence[str]]  # multiaddrs by peer


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a member says that it listens, and the certificate that it will show (DER)."""

    hosts: tuple[str, ...]  # addresses and names, in its own order
    machine: str  # equal ones may reach each other over loopback
    port: int
    certificate: bytes

    def to_wire(self) -> dict[str, Any]:
        """What `from_wire` reads."""
        return asdict(self) | {"hosts": list(self.hosts)}

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads."""
        return bytes(msgpack.packb(self.to_wire()))

    @classmethod
    def from_bytes(cls, answer: bytes) -> "Endpoint":
        """A member's own, as it says; raises RemoteProtocolError."""
        try:
            return cls.from_wire(msgpack.unpackb(answer))
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise RemoteProtocolError("A member's answer is not msgpack.") from error

    @classmethod
    def from_wire(cls, value: object) -> "Endpoint":
        """Read strictly, but for fields of a later version; raises RemoteProtocolError."""
        match value:
            case {
                "hosts": list(hosts),
                "machine": str(machine),
                "port": port,
                "certificate": bytes(certificate),
            } if (
                len(hosts) <= HOSTS_CAP
                and all(map(_is_host, hosts))
                and len(machine) <= NAME_CAP
                and type(port) is int
                and 0 < port < PORTS
                and 0 < len(certificate) <= CERTIFICATE_CAP
            ):
                return cls(tuple(hosts), machine, port, certificate)
        raise RemoteProtocolError("A member does not say where it listens.")


class Reach:
    """How this node is reached, and how it reaches the other members of its groups."""

    def __init__(
        self,
        machine: str,
        addresses: Callable[[], Awaitable[Sequence[str]]],
        connected: Callable[[], Awaitable[Addresses]],
    ) -> None:
        self.machine = machine
        self._addresses = addresses
        self._connected = connected

    async def endpoint(self, port: int, certificate: bytes) -> Endpoint:
        """Our own: at the addresses that we announce to all peers; raises Unreachable."""
        hosts = hosts_in(await self._addresses())[:HOSTS_CAP]
        return Endpoint(hosts, self.machine, port, certificate)

    async def ranks(
        self, peers: Sequence[str], endpoints: Sequence[Endpoint], own: int
    ) -> list[Rank]:
        """Every rank as a worker dials it; raises PeerLost if a lower one cannot be dialed."""
        connected = await self._connected()
        found = []
        for number, (peer, endpoint) in enumerate(zip(peers, endpoints, strict=True)):
            known = candidates(endpoint, hosts_in(connected.get(peer, ())))
            hosts = usable(await _resolved(known), is_near=endpoint.machine == self.machine)
            if not hosts and number < own:
                raise _unreachable(peer, known)
            found.append(Rank(hosts, endpoint.port, endpoint.certificate))
        return found


def group_host(listened: str) -> str:
    """Where group sockets listen: they speak IPv4, so beside IPv6 alone on this machine only."""
    return LOOPBACK if ":" in listened else listened


def hosts_in(multiaddrs: Iterable[str]) -> tuple[str, ...]:
    """The IPv4 addresses and names of multiaddrs, once each; those of relays are not the peer's."""
    parts = [each.split("/") for each in multiaddrs if CIRCUIT not in each]
    hosts = [words[2] for words in parts if len(words) > 2 and words[1] in DIALABLE]
    return tuple(dict.fromkeys(filter(_is_host, hosts)))


def candidates(endpoint: Endpoint, connected: Sequence[str]) -> tuple[str, ...]:
    """The hosts to try for a member, the likeliest first.

    What the peer announces and our connection to it proves, then the rest that it announces, then
    from where it has connected to us.
    """
    proved = [host for host in endpoint.hosts if host in connected]
    return tuple(dict.fromkeys((*proved, *endpoint.hosts, *connected)))


def usable(addresses: Sequence[str], *, is_near: bool) -> tuple[str, ...]:
    """Those that can lead to the peer: loopback for one of this machine, and for no other."""
    known = [ipaddress.IPv4Address(each) for each in addresses]
    known = [each for each in known if not (each.is_unspecified or each.is_multicast)]
    far = [str(each) for each in known if not each.is_loopback]
    near = [LOOPBACK, *(str(each) for each in known if each.is_loopback)] if is_near else []
    return tuple(dict.fromkeys((*near, *far)))


def _is_host(value: object) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= NAME_CAP
        and HOST_NAME.fullmatch(value) is not None
        and (not _is_number(value) or _is_address(value))
    )


def _is_number(host: str) -> bool:
    """Whether a resolver would take it for an address, in one of its odd forms perhaps."""
    return host.rpartition(".")[2][0].isdigit()


def _is_address(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _unreachable(peer: str, known: Sequence[str]) -> PeerLost:
    said = ", ".join(known) or "none"
    return PeerLost(
        f"Peer {peer} is on another machine and gives no address to dial there ({said}).",
        "Its node needs --listen 0.0.0.0, or --announce with its address.",
        peer=peer,
    )


async def _resolved(hosts: Sequence[str]) -> list[str]:
    """IPv4 addresses, those of names looked up; names that nobody knows are left out."""
    found = await asyncio.gather(*map(_addresses_of, hosts))
    return [address for each in found for address in each][: 2 * HOSTS_CAP]


async def _addresses_of(host: str) -> list[str]:
    if _is_address(host):
        return [host]
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            known = await loop.getaddrinfo(host, None, family=socket.AF_INET)
    except (OSError, UnicodeError, TimeoutError):
        return []
    return [str(each[4][0]) for each in known]
