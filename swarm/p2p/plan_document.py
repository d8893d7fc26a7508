"""Plan documents on their way: named by digest, asked of a peer, read as their planner's own."""

import hashlib
from collections.abc import Callable
from typing import Protocol, TypeVar

from swarm.p2p.channel import Channel

QUESTION = "plan"  # its payload is a digest, its answer the document
ASK_SECONDS = 5.0


class Authored(Protocol):
    """A document as whoever reads it wants it, with its author and that planner's term."""

    @property
    def planner(self) -> str:
        """The peer that made it."""

    @property
    def term(self) -> int:
        """The term of the planner that made it."""


D = TypeVar("D", bound=Authored)


def digest_of(data: bytes) -> str:
    """SHA-256 in hex: the name of a plan document."""
    return hashlib.sha256(data).hexdigest()


async def fetch_document(
    channel: Channel, holder: str, digest: str, *, timeout_seconds: float = ASK_SECONDS
) -> bytes:
    """Ask a peer for the document of this name, whoever wrote it; no answer is above 1 MiB.

    Raises PeerError, RemoteProtocolError; ValueError if another one comes.
    """
    data = await channel.ask(holder, QUESTION, digest.encode(), timeout_seconds=timeout_seconds)
    if digest_of(data) != digest:
        raise ValueError("it is not the one that was announced")
    return data


def read_own(data: bytes, read: Callable[[bytes], D], planner: str, term: int) -> D:
    """Read a document that a planner announced as its own; raises ValueError if it is not."""
    document = read(data)
    if (document.planner, document.term) != (planner, term):
        raise ValueError("it is another planner's")
    return document
