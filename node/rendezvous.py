"""Rendezvous: what members of a group tell each other about their doors, read strictly."""

from collections.abc import Mapping
from typing import Any

import msgpack

from swarm.errors import RemoteProtocolError

PORTS = 65536
CERTIFICATE_CAP = 4096  # bytes
NAME_CAP = 255  # characters


def door_of(answer: bytes) -> dict[str, Any]:
    """Host, machine, port and certificate of a member; raises RemoteProtocolError."""
    try:
        found = msgpack.unpackb(answer)
    except (ValueError, msgpack.UnpackException) as error:
        raise RemoteProtocolError("A member's answer is not msgpack.") from error
    match found:
        case {"machine": str(), **rest} if len(rest) + 1 == len(found) and _is_rank(rest):
            return dict(found)
    raise RemoteProtocolError("A member does not say where it listens.")


def ranks_of(value: object, ranks: int) -> list[dict[str, Any]]:
    """Where every rank of a group listens, as its leader says; raises RemoteProtocolError."""
    if isinstance(value, list) and len(value) == ranks and all(map(_is_rank, value)):
        return list(value)
    raise RemoteProtocolError("A leader does not say where its ranks listen.")


def _is_rank(value: object) -> bool:
    if not isinstance(value, Mapping) or set(value) != {"host", "port", "certificate"}:
        return False
    host, port, certificate = value["host"], value["port"], value["certificate"]
    is_open = type(port) is int and 0 < port < PORTS
    is_known = isinstance(certificate, bytes) and 0 < len(certificate) <= CERTIFICATE_CAP
    return isinstance(host, str) and len(host) <= NAME_CAP and is_open and is_known
