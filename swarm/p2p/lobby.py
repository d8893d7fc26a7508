"""Lobby: where a machine that is no member yet redeems its ticket, by questions of their own.

Who knows the key may ask; only a delegate can grant, other members hand the question on. A ticket
is bound to the machine that shows it, so nobody on the way gains anything.
"""

import asyncio
import logging
from collections.abc import Iterable

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
from swarm.p2p.p2p_daemon import P2PDaemon
from swarm.p2p.rpc import Limits, Rpc
from swarm.p2p.tcp_probe import tcp_problem
from swarm.trust.members import Members
from swarm.trust.swarm_key import SwarmKey

QUESTION, STANDING, PURPOSE = "redeem", "standing", "lobby"
ASK_SECONDS = 15.0  # one peer, which may hand it on
CALLS_PER_SECOND = 5  # of one peer
NO_DELEGATE = "delegate"  # in the words of who knows none
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
        trouble: list[PeerError] = []
        given = list(addresses)
        words = await asyncio.gather(*map(tcp_problem, given))
        closed = {address: word for address, word in zip(given, words, strict=True) if word}
        for peer in self._known(address for address in given if address not in closed):
            proof = self._key.proof(PURPOSE, self._daemon.peer, peer)
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    return await self._rpc.ask(peer, QUESTION, request, proof)
            except TimeoutError:
                trouble.append(PeerLost(f"Peer {peer} does not answer.", peer=peer))
            except RemoteProtocolError as error:
                trouble.append(PeerLost(str(error), peer=peer))
            except PeerError as error:
                trouble.append(error)
        tried = [f"{readable(address)} {word}" for address, word in closed.items()]
        raise _trouble_of(trouble, ", ".join(tried) or "nobody at its addresses")

    async def learn_standing(self, addresses: Iterable[str], members: Members) -> None:
        """Take the word of peers' registers, if they have nothing to do with us any more."""
        for peer in self._known(addresses):
            proof = self._key.proof(PURPOSE, self._daemon.peer, peer)
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    known = await self._rpc.ask(peer, STANDING, members.own_pass, proof)
                if known:
                    members.hear_register(known)
            except (TimeoutError, PeerError, RemoteProtocolError, OSError) as error:
                logger.debug("%s does not say how we stand: %r", peer, error)

    def _known(self, addresses: Iterable[str]) -> list[str]:
        """The peers at these multiaddrs, which the daemon may not have met yet."""
        at: dict[str, list[str]] = {}
        for address in addresses:
            at.setdefault(peer_of_address(address), []).append(address)
        for peer, where in at.items():
            if multiaddrs := [each for each in where if each.startswith("/")]:
                self._daemon.note_addresses(peer, multiaddrs)
        return list(at)

    async def _serve(
        self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        peer = str(info.peer_id)
        door = self._daemon.door.without_passes()
        proof = self._key.proof(PURPOSE, peer, self._daemon.peer)
        await self._rpc.serve(peer, (reader, writer), proof, door)


def _trouble_of(trouble: list[PeerError], tried: str) -> BadInvite | Unreachable:
    for error in trouble:
        logger.info("no membership from %s: %s", error.peer, error.cause)
    refusals = [error.cause for error in trouble if isinstance(error, PeerRefused)]
    final = [cause for cause in refusals if NO_DELEGATE not in cause]
    final.sort(key=lambda cause: ELSEWHERE in cause)  # what a delegate says of the ticket first
    if final:
        cause = final[0].partition(": ")[2] or final[0]
        return BadInvite(cause, "Ask for a fresh invite: `swarm invite` makes it.")
    if refusals:
        return Unreachable(
            "Neither the founder nor a delegate of the swarm is up to admit this machine.",
            "Try again when one of them is: members that are in already are not concerned.",
        )
    return Unreachable(
        f"No peer in the invite answers ({tried}).",
        "Check the network, or ask for a fresh invite: `swarm invite` makes it.",
    )
