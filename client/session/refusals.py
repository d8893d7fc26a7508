"""Refusals: what a stage's BUSY, FAIL or MOVED means to the one who asked; pure."""

from collections.abc import Container

from swarm.errors import PeerError, PeerLost, PeerRefused
from swarm.formatting import printable, short_id
from swarm.wire.messages import Busy, Fail, Moved
from swarm.wire.rules import TEMPORARY

LEAST_RETRY_SECONDS = 0.05


def refusal_of(peer: str, message: Busy | Fail | Moved, members: Container[str]) -> PeerError:
    """The error that a stage's refusal amounts to; it may blame another of the route's members."""
    reason = "" if isinstance(message, Moved) else printable(message.reason)
    match message:
        case Busy():
            return PeerRefused(
                f"Peer {short_id(peer)} is busy: {reason.rstrip('.') or 'no room'}.",
                "Try again later.",
                peer=peer,
                retry_after_seconds=max(message.retry_after_seconds, LEAST_RETRY_SECONDS),
            )
        case Fail() if message.code not in TEMPORARY:
            cause = f"Peer {short_id(peer)} refused ({printable(message.code)}): {reason}"
            return PeerRefused(cause, peer=peer)
        case Fail():
            blamed = message.peer if message.peer in members else peer
            cause = f"Peer {short_id(blamed)} cannot go on: {reason}"
            return PeerLost(cause, peer=blamed, told_by="" if blamed == peer else peer)
        case Moved():
            return PeerLost(f"Peer {short_id(peer)} is leaving.", peer=peer)
