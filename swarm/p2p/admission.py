"""Admission: what is settled with a peer before it hears anything else of us, once for each.

In a certified swarm a peer of whom we have seen no pass shows it first; a client that its person
introduces says whose it is.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from swarm.errors import PeerRefused
from swarm.p2p.rpc import INTRODUCE
from swarm.trust.door import Door

PASS = "pass"  # the question for what a peer has shown
Ask = Callable[[str, str, bytes], Awaitable[bytes]]  # peer, question, payload


class Admission:
    """Whom the door lets us speak with."""

    def __init__(self, door: Door, ask: Ask) -> None:
        """`ask` raises PeerRefused, PeerLost, and asks for no admission."""
        self._door, self._ask = door, ask
        self._introduced: set[str] = set()  # peers that know whose client we are

    async def require(self, peer: str) -> None:
        """Return if we may speak with a peer; raises PeerRefused, PeerLost."""
        problem = self._door.problem_with(peer)
        if not problem:
            await self._introduce_ourselves(peer)
            if self._door.has_to_introduce(peer):
                shown = await self._ask(peer, PASS, peer.encode())
                problem = self._door.problem_of(peer, shown)
        if problem:
            raise PeerRefused(f"Not asked: {problem}", peer=peer)

    def forget(self, peer: str) -> None:
        """A peer is gone: it may be another process next time."""
        self._introduced.discard(peer)

    async def answer_pass(self, _peer: str, payload: bytes) -> bytes:
        """Our own pass, or that of a peer which has shown it; raises PeerRefused."""
        assert self._door.members is not None
        return self._door.members.pass_of(payload.decode(errors="replace"))

    async def _introduce_ourselves(self, peer: str) -> None:
        shown = self._door.introduction
        if not shown or peer in self._introduced:
            return
        with suppress(PeerRefused):  # who has no list has no use for it
            await self._ask(peer, INTRODUCE, shown)
        self._introduced.add(peer)
