"""Lobby: where a machine that is no member yet redeems its ticket, by questions of their own.

Who knows the key may ask; only a delegate can grant, other members hand the question on. A ticket
is bound to the machine that shows it, so nobody on the way gains anything.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from swarm.errors import (
    BadInvite,
    PeerError,
    PeerLost,
    PeerRefused,
    RemoteProtocolError,
    Unreachable,
)
from swarm.invites import peer_of_address
from swarm.p2p.addresses import readable
from swarm.p2p.channel import RpcHandler
from swarm.p2p.first_answer import first_answer
from swarm.p2p.p2p_daemon import P2PDaemon
from swarm.p2p.rpc import Limits, Rpc
from swarm.p2p.tcp_probe import tcp_problem
from swarm.task_set import TaskSet
from swarm.trust.members import Members
from swarm.trust.swarm_key import SwarmKey

QUESTION, STANDING, PURPOSE = "redeem", "standing", "lobby"
ASK_SECONDS = 15.0  # one peer, which may hand it on
STANDING_SECONDS = 5.0
CALLS_PER_SECOND = 5  # of one peer
NOT_NOW = ("No delegate is up", "This delegate cannot write")  # in the words of who might later
ELSEWHERE = "does not serve"  # in the words of who is in another swarm, or in none

logger = logging.getLogger(__name__)


class Lobby:
    """The questions of newcomers to one peer."""

    def __init__(self, daemon: P2PDaemon, swarm: str, key: str) -> None:
        self._daemon = daemon
        self._key = SwarmKey(swarm, key)
        protocol = f"/swarm/1/{self._key.name}/lobby"
        self._rpc = Rpc(daemon, protocol, Limits(CALLS_PER_SECOND))
        self._is_open = False

    async def open(self, handler: RpcHandler, members: Members) -> None:
        """Answer newcomers with this handler, and tell who is revoked that it is."""

        async def standing(peer: str, shown: bytes) -> bytes:
            return members.register.to_bytes() if members.has_revoked(peer, shown) else b""

        self._rpc.answer(QUESTION, handler)
        self._rpc.answer(STANDING, standing)
        self._is_open = True
        await self.reopen()

    async def reopen(self) -> None:
        """Serve on the daemon that runs now, if newcomers are answered here at all."""
        if self._is_open:
            await self._daemon.p2p.add_binary_stream_handler(self._rpc.protocol, self._serve)

    async def redeem(self, addresses: Iterable[str], request: bytes) -> bytes:
        """Buy a membership from whichever peer grants it; raises BadInvite, Unreachable."""
        known = self._known(addresses)
        asks = [partial(self._redeem_at, *each, request) for each in known.items()]
        granted, trouble = await first_answer(asks)
        if granted is None:
            raise _trouble_of(trouble)
        return granted

    async def _redeem_at(self, peer: str, addresses: Sequence[str], request: bytes) -> bytes:
        """Buy a membership from one peer; raises PeerError."""
        if closed := await _closed_ends(addresses):
            raise NobodyThere(closed, peer=peer)
        proof = self._key.proof(PURPOSE, self._daemon.peer, peer)
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self._rpc.ask(peer, QUESTION, request, proof)
        except TimeoutError as error:
            raise PeerLost(f"Peer {peer} does not answer.", peer=peer) from error
        except RemoteProtocolError as error:
            raise PeerLost(str(error), peer=peer) from error

    async def certifies(self, addresses: Iterable[str]) -> bool:
        """Whether a peer at these addresses says that its swarm certifies its members."""
        for peer in self._known(addresses):
            proof = self._key.proof(PURPOSE, self._daemon.peer, peer)
            with suppress(TimeoutError, PeerError, RemoteProtocolError):
                async with asyncio.timeout(STANDING_SECONDS):
                    await self._rpc.ask(peer, STANDING, b"", proof)
                    return True
        return False

    async def learn_standing(self, addresses: Iterable[str], members: Members) -> None:
        """Take the word of peers' registers, if they have nothing to do with us any more."""
        known = self._known(addresses)
        await asyncio.gather(*(self._learn_standing_from(peer, members) for peer in known))

    async def _learn_standing_from(self, peer: str, members: Members) -> None:
        proof = self._key.proof(PURPOSE, self._daemon.peer, peer)
        try:
            async with asyncio.timeout(STANDING_SECONDS):
                known = await self._rpc.ask(peer, STANDING, members.own_pass, proof)
            if known:
                members.hear_register(known)
        except (TimeoutError, PeerError, RemoteProtocolError, OSError) as error:
            logger.debug("%s does not say how we stand: %r", peer, error)

    def _known(self, addresses: Iterable[str]) -> dict[str, list[str]]:
        """The peers at these multiaddrs, which the daemon may not have met yet."""
        at: dict[str, list[str]] = {}
        for address in addresses:
            at.setdefault(peer_of_address(address), []).append(address)
        for peer, where in at.items():
            if multiaddrs := [each for each in where if each.startswith("/")]:
                self._daemon.note_addresses(peer, multiaddrs)
        return at

    async def _serve(
        self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        peer = str(info.peer_id)
        door = self._daemon.door.without_passes()
        proof = self._key.proof(PURPOSE, peer, self._daemon.peer)
        await self._rpc.serve(peer, (reader, writer), proof, door)


class NobodyThere(PeerLost):
    """Nothing listens at any address of a peer; the cause names them."""


async def _closed_ends(addresses: Sequence[str]) -> str:
    """The addresses, each with why nothing listens there; empty as soon as something does."""

    async def word_of(address: str) -> str:
        problem = await tcp_problem(address)
        return f"{readable(address)} {problem}" if problem else ""

    async with TaskSet() as tasks:
        asked = [tasks.create("knocking", word_of(a), is_awaited=True) for a in addresses]
        words = []
        for each in asyncio.as_completed(asked):
            words.append(await each)
            if not words[-1]:
                return ""
    return ", ".join(words)


def _trouble_of(trouble: Sequence[PeerError]) -> BadInvite | Unreachable:
    for error in trouble:
        logger.info("no membership from %s: %s", error.peer, error.cause)
    refusals = [error.cause for error in trouble if isinstance(error, PeerRefused)]
    final = [cause for cause in refusals if not any(words in cause for words in NOT_NOW)]
    final.sort(key=lambda cause: ELSEWHERE in cause)  # what a delegate says of the ticket first
    if final:
        cause = final[0].partition(": ")[2] or final[0]
        return BadInvite(cause, "Ask for a fresh invite: `swarm invite` makes it.")
    if refusals:
        return Unreachable(
            "Neither the founder nor a delegate of the swarm is up to admit this machine.",
            "Try again when one of them is: members that are in already are not concerned.",
        )
    tried = ", ".join(each.cause for each in trouble if isinstance(each, NobodyThere))
    return Unreachable(
        f"No peer in the invite answers ({tried or 'nobody at its addresses'}).",
        "Check the network, or ask for a fresh invite: `swarm invite` makes it.",
    )
