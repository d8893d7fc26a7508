"""Addresses: multiaddrs from what a person types, and back to what a person reads."""

import ipaddress
import re
import socket
from collections.abc import Container, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import cache

import psutil

Host = ipaddress.IPv4Address | ipaddress.IPv6Address

LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = "0.0.0.0"  # of both families
EVERY_ADDRESS_6 = "::"
PRIVATE_4 = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
PRIVATE_6 = ("fc00::/7", "fe80::/10")
THIS_LINK = ("169.254.0.0/16", "127.0.0.0/8", "::1/128")
PRIVATE = tuple(map(ipaddress.ip_network, (*PRIVATE_4, *PRIVATE_6, *THIS_LINK)))
CIRCUIT = "/p2p-circuit"  # behind a relay's multiaddr: the way to a peer through it
PORT_TRIES = 20  # to find a port that is free in both families
HOME_BITS = {4: 24, 6: 64}  # of an address: machines with equal ones share a network
FORM = "Write it like 203.0.113.7:4001, node.example.org:4001 or [2001:db8::7]:4001."
_MULTIADDR = re.compile(
    r"/(?P<kind>ip4|ip6|dns|dns4|dns6)/(?P<host>[^/\s]+)/(?P<carrier>tcp|udp)/(?P<port>\d{1,5})"
    r"(?P<more>/quic-v1)?(?:/p2p/\w+)?"
)
_HOST_AND_PORT = re.compile(r"(?:\[(?P<v6>[^\]\s]+)\]|(?P<host>[^:/\s\[\]]+)):(?P<port>\d{1,5})")
_DNS_NAME = re.compile(r"(?=.{1,253}$)(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*\.?")


def multiaddr_of(text: str) -> str:
    """Read host:port, [v6]:port or a multiaddr as a multiaddr; raises ValueError with the cause."""
    word = text.strip()
    if found := _MULTIADDR.fullmatch(word):
        host, port = _checked(found["host"], found["port"])
        return f"/{found['kind']}/{host}/{found['carrier']}/{port}{found['more'] or ''}"
    found = _HOST_AND_PORT.fullmatch(word)
    if found is None:
        lacks = ":" not in word and "/" not in word and word
        raise ValueError(f"{text!r:.80} lacks a port" if lacks else f"{text!r:.80} is no address")
    host, port = _checked(found["v6"] or found["host"], found["port"])
    return f"/{_kind_of(host)}/{host}/tcp/{port}"


def readable(multiaddr: str) -> str:
    """The host:port of a multiaddr, or the multiaddr itself where it has none."""
    found = _MULTIADDR.fullmatch(multiaddr)
    if found is None:
        return multiaddr
    return host_and_port(found["host"], int(found["port"]))


def port_of(multiaddr: str) -> int:
    """The port of a multiaddr that `multiaddr_of` has made."""
    found = _MULTIADDR.fullmatch(multiaddr)
    return int(found["port"]) if found else 0


def is_loopback(multiaddr: str) -> bool:
    """Whether only this machine reaches it."""
    found = _MULTIADDR.fullmatch(multiaddr)
    try:
        return found is not None and ipaddress.ip_address(found["host"]).is_loopback
    except ValueError:
        return False


def is_private(multiaddr: str) -> bool:
    """Whether only machines of some private network reach it, or of this machine alone."""
    host = _host_of(multiaddr)
    return host is not None and any(host in network for network in PRIVATE)


def home_of(multiaddr: str) -> str:
    """The home network of a private address (its /24, of IPv6 its /64); empty for others."""
    host = _host_of(multiaddr)
    if host is None or host.is_loopback or not is_private(multiaddr):
        return ""
    return str(ipaddress.ip_network((host, HOME_BITS[host.version]), strict=False))


def dialable(multiaddrs: Iterable[str], homes: Container[str] | None = None) -> tuple[str, ...]:
    """Addresses without those of private networks that are not ours, which nobody answers in time.

    If nothing else is left all are taken: networks of companies are larger than a home's.
    """
    given = tuple(dict.fromkeys(multiaddrs))
    near = own_homes() if homes is None else homes
    known = [each for each in given if not is_private(each) or home_of(each) in near]
    here = [each for each in given if is_loopback_at(each)]  # refused at once where it is not ours
    return (*known, *here) if known else given


def is_enclosed(multiaddrs: Sequence[str]) -> bool:
    """Whether they lead to other machines of a private network, and to nobody outside it."""
    far = [each for each in multiaddrs if not is_loopback_at(each)]
    return bool(far) and all(map(is_private, far))


def own_homes() -> frozenset[str]:
    """The private networks that this machine is in."""
    found = (home_of(f"/{_kind_of(host)}/{host}/") for host in _interface_hosts())
    return frozenset(found) - {""}


def is_loopback_at(multiaddr: str) -> bool:
    """Whether an address, with or without its peer, is of the reader's own machine."""
    host = _host_of(multiaddr)
    return host is not None and host.is_loopback


def _host_of(multiaddr: str) -> Host | None:
    """The IP address that is dialed first."""
    words = multiaddr.split("/", 3)
    if len(words) < 4 or words[1] not in ("ip4", "ip6"):
        return None
    try:
        return ipaddress.ip_address(words[2])
    except ValueError:
        return None


def listening_host(text: str) -> str:
    """The address to listen on that a person names; raises ValueError with the cause."""
    if text.strip().lower() == "localhost":
        return LOOPBACK
    try:
        address = str(ipaddress.ip_address(text.strip().strip("[]")))
    except ValueError:
        raise ValueError(f"{text!r:.80} is not an address of this machine") from None
    return EVERY_ADDRESS if address == EVERY_ADDRESS_6 else address


def listening_hosts(host: str) -> tuple[str, ...]:
    """Each address to open a socket at: one of both families if every address is meant."""
    if host != EVERY_ADDRESS:
        return (host,)
    return (EVERY_ADDRESS, EVERY_ADDRESS_6) if has_ipv6() else (EVERY_ADDRESS,)


def free_port(hosts: Iterable[str]) -> int:
    """A port that nobody uses at any of these addresses; 0 where none is found."""
    for _ in range(PORT_TRIES):
        port = 0
        with suppress(OSError), ExitStack() as held:
            for host in hosts:
                made = socket.create_server((host, port), family=family_of(host))
                port = held.enter_context(made).getsockname()[1]
            return port
    return 0


@cache
def has_ipv6() -> bool:
    """Whether this machine has IPv6 at all."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind((EVERY_ADDRESS_6, 0))
    except OSError:
        return False
    return True


def family_of(host: str) -> socket.AddressFamily:
    """Which kind of socket listens at an IP address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def host_and_port(host: str, port: int) -> str:
    """Both as people write them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def tcp_multiaddr(host: str, port: int) -> str:
    """The multiaddr of a TCP port at an IP address."""
    return f"/{_kind_of(host)}/{host}/tcp/{port}"


def own_multiaddrs(host: str, port: int) -> tuple[str, ...]:
    """Where a program of this machine that listens on `host` is reached from here."""
    hosts = _interface_hosts() if host == EVERY_ADDRESS else (host,)
    return tuple(tcp_multiaddr(each, port) for each in hosts)


def _interface_hosts() -> Iterable[str]:
    """This machine's addresses, loopback last; link-local ones, which need a zone, are left out."""
    families = (socket.AF_INET, socket.AF_INET6) if has_ipv6() else (socket.AF_INET,)
    found = (each for card in psutil.net_if_addrs().values() for each in card)
    ours = {each.address for each in found if each.family in families and "%" not in each.address}
    return sorted(ours, key=_by_reach)


def _by_reach(host: str) -> tuple[bool, bool, str]:
    return ipaddress.ip_address(host).is_loopback, ":" in host, host


def _checked(host: str, port: str) -> tuple[str, int]:
    number = int(port)
    if not 1 <= number <= 65535:
        raise ValueError(f"{number} is no port")
    kind = _kind_of(host)
    if kind == "dns4" and not _DNS_NAME.fullmatch(host):
        raise ValueError(f"{host!r:.80} is no host")
    if kind != "dns4" and ipaddress.ip_address(host).is_unspecified:
        raise ValueError(f"nobody reaches a node at {host}")
    return host, number


def _kind_of(host: str) -> str:
    try:
        return f"ip{ipaddress.ip_address(host).version}"
    except ValueError:
        return "dns4"


def by_peer(addresses: Iterable[str]) -> dict[str, list[str]]:
    """Multiaddrs by the peer id at their ends, in the order in which peers are named."""
    found: dict[str, list[str]] = {}
    for address in addresses:
        found.setdefault(peer_part(address), []).append(address)
    return found


def peer_part(address: str) -> str:
    """What stands behind the last /p2p/ of a multiaddr, unchecked; all of it if there is none."""
    return address.rpartition("/p2p/")[2]
