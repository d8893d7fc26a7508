"""Addresses: multiaddrs from what a person types, and back to what a person reads."""

import ipaddress
import re
import socket
from collections.abc import Iterable

import psutil

LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = "0.0.0.0"
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
    host = f"[{found['host']}]" if ":" in found["host"] else found["host"]
    return f"{host}:{found['port']}"


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


def listening_host(text: str) -> str:
    """The IPv4 address to listen on that a person names; raises ValueError with the cause."""
    if text.strip().lower() == "localhost":
        return LOOPBACK
    try:
        address = ipaddress.ip_address(text.strip().strip("[]"))
    except ValueError:
        raise ValueError(f"{text!r:.80} is not an address of this machine") from None
    if address.version != 4:
        raise ValueError(f"{text!r:.80} is an IPv6 address; nodes listen on IPv4 only, so far")
    return str(address)


def own_multiaddrs(host: str, port: int) -> tuple[str, ...]:
    """Where a program of this machine that listens on `host` is reached from here."""
    hosts = _interface_hosts() if host == EVERY_ADDRESS else (host,)
    return tuple(f"/ip4/{each}/tcp/{port}" for each in hosts)


def _interface_hosts() -> Iterable[str]:
    found = (each for card in psutil.net_if_addrs().values() for each in card)
    ours = {each.address for each in found if each.family == socket.AF_INET}
    return sorted(ours, key=lambda host: (host.startswith("127."), host))


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
