"""Packed addresses: a multiaddr over TCP in 6 or 18 bytes, for invites; any other as its text."""

import ipaddress
import re

ADDRESS_CAP = 512  # characters
_TCP = re.compile(r"/ip[46]/(?P<host>[^/]{1,45})/tcp/(?P<port>\d{1,5})")


def pack_address(multiaddr: str) -> bytes | str:
    """IP and port of a plain TCP address as bytes; else the text as it is."""
    found = _TCP.fullmatch(multiaddr)
    if found is None or int(found["port"]) > 65535:
        return multiaddr
    try:
        host = ipaddress.ip_address(found["host"])
    except ValueError:
        return multiaddr
    packed = host.packed + int(found["port"]).to_bytes(2)
    return packed if unpack_address(packed) == multiaddr else multiaddr


def unpack_address(packed: object) -> str:
    """The multiaddr that was packed; raises ValueError."""
    if isinstance(packed, str) and len(packed) <= ADDRESS_CAP:
        return packed
    if not isinstance(packed, bytes) or len(packed) not in (6, 18):
        raise ValueError("not a packed address")
    host, port = ipaddress.ip_address(packed[:-2]), int.from_bytes(packed[-2:])
    return f"/ip{host.version}/{host}/tcp/{port}"
