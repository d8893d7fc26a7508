"""Hello: what comes first on a stream - the proof of the swarm's key and, where needed, a pass."""

import asyncio
import hmac

from swarm.errors import RemoteProtocolError
from swarm.trust.door import Door
from swarm.trust.membership import PASS_CAP

PROOF_BYTES = 32
SIZE_BYTES = 2  # of a pass


def hello_of(proof: bytes, door: Door) -> bytes:
    """What we say first; in a certified swarm with our pass."""
    shown = door.own_pass
    return proof + len(shown).to_bytes(SIZE_BYTES) + shown if door.members else proof


async def read_hello(reader: asyncio.StreamReader, door: Door) -> tuple[bytes, bytes]:
    """The proof and the pass of the other side; raises RemoteProtocolError, STREAM_ERRORS."""
    proof = await reader.readexactly(PROOF_BYTES)
    if not door.members:
        return proof, b""
    size = int.from_bytes(await reader.readexactly(SIZE_BYTES))
    if size > PASS_CAP:
        raise RemoteProtocolError("A pass is too long.")
    return proof, await reader.readexactly(size)


def problem_of_hello(said: tuple[bytes, bytes], expected: bytes, door: Door, peer: str) -> str:
    """Why a peer that says this is not let in; empty if it is."""
    if not is_proven(said, expected):
        return "The swarm is private; the key is wrong."
    return door.problem_of(peer, said[1])


def is_proven(said: tuple[bytes, bytes], expected: bytes) -> bool:
    """Whether a peer that says this knows the swarm's key."""
    return hmac.compare_digest(said[0], expected)
