"""Admissions: a node's part in who is a member - tickets redeemed, revocations shared, invites."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from swarm.dht.board import Board
from swarm.dht.founders_manifest import SignedManifest
from swarm.errors import BadInput, PeerError, PeerLost, PeerRefused, RemoteProtocolError, SwarmError
from swarm.invites import Invite
from swarm.p2p.channel import ANSWER_CAP, Channel
from swarm.p2p.first_answer import first_answer
from swarm.p2p.lobby import Lobby
from swarm.records import Capability, Relay
from swarm.trust.identity import Identity
from swarm.trust.machine_state import MachineState
from swarm.trust.members import REVOKED_WORDS, Members
from swarm.trust.membership import Holding, found
from swarm.trust.network_clock import CLOCK
from swarm.trust.register import REGISTER_CAP
from swarm.trust.tickets import sell

SHARE_SECONDS = 10.0  # between questions for what others know
LOOK_SECONDS = 1.0
RENEW_SECONDS = 3600.0  # between tries to get a certificate renewed
SHARED_WITH = 3  # peers at a time
ASK_SECONDS = 5.0
ADMIT_SECONDS = 3.0  # for what other delegates know, before a one-time ticket is spent
TELL_SECONDS = 1.0  # for them to know it then; who is slow hears of it later
HANDED_ON = 4  # delegates that are asked for a newcomer
STANDING_SECONDS = 30 * 86400.0  # for which the invite that a founder prints holds
DIGEST_BYTES = 32
REGISTER, REDEEM, RENEW = "register", "redeem", "renew"  # the questions

logger = logging.getLogger(__name__)
assert REGISTER_CAP < ANSWER_CAP


def _keep_nothing(_holding: Holding) -> None:
    """For who has no disk."""


class Admissions:
    """Answers newcomers and members about certificates, and keeps the register up to date."""

    def __init__(
        self,
        members: Members,
        lobby: Lobby,
        channel: Channel,
        board: Board,
        keep: Callable[[Holding], None] = _keep_nothing,
    ) -> None:
        """`keep` writes down a new certificate of this machine; it raises BadInput."""
        self._members, self._lobby, self._keep = members, lobby, keep
        self._renewed_at = -math.inf
        self._channel, self._board = channel, board
        channel.answer(REGISTER, self._answer_register)
        channel.answer(REDEEM, self._redeem)
        channel.answer(RENEW, self._answer_renew)

    def invite(self, plain: Invite) -> Invite:
        """With a ticket for any machine, if this one may sell them."""
        machine = self._members.machine
        if not machine.holding.is_delegate:
            return plain
        now = CLOCK.now()
        made = max(now, self._members.register.tickets_since + 1)
        issuer = machine.holding, machine.identity
        ticket = sell(plain.swarm, issuer, made, now + STANDING_SECONDS, 0)
        return replace(plain, ticket=ticket, expires=float(int(time.time() + STANDING_SECONDS)))

    async def admit(self, peer: str, request: bytes) -> bytes:
        """Certify a newcomer's machine, or hand the question to a delegate; raises PeerRefused.

        Who brings nothing costs no other peer a question.
        """
        if self._members.machine.holding.is_delegate:
            return await self._redeem(peer, request)
        self._members.require_sound(request)
        delegates = await self._delegates()
        asks = [partial(self._handed_on, delegate, request) for delegate in delegates]
        granted, errors = await first_answer(asks)
        if granted is not None:
            return granted
        for error in errors:
            logger.info("delegate %s admits nobody now: %s", error.peer, error)
        refusals = [each.cause for each in errors if isinstance(each, PeerRefused)]
        cause = refusals[-1].rpartition("PeerRefused: ")[2] if refusals else "No delegate is up."
        raise PeerRefused(cause)

    async def _handed_on(self, delegate: str, request: bytes) -> bytes:
        """What a delegate grants; raises PeerError."""
        try:
            return await self._channel.ask(delegate, REDEEM, request, timeout_seconds=ASK_SECONDS)
        except RemoteProtocolError as error:
            raise PeerLost(str(error), peer=delegate) from error

    async def share(self) -> None:
        """Ask a few peers now and then for what they know; never ends."""
        while True:
            await self._hear(await self._others(SHARED_WITH))
            await self._keep_passes()
            await self._renew_in_time()
            await asyncio.sleep(SHARE_SECONDS)  # what is revoked meanwhile is told to us at once

    async def until_revoked(self) -> None:
        """Raise BadInvite when this machine is revoked."""
        while True:
            self._members.require_member()
            await asyncio.sleep(LOOK_SECONDS)

    async def _hear(self, peers: Iterable[str]) -> None:
        async with asyncio.TaskGroup() as asking:
            for peer in peers:
                asking.create_task(self._hear_one(peer))

    async def _hear_one(self, peer: str) -> None:
        """Tell a peer what we know, and learn what it does, if that differs."""
        register = self._members.register
        register.read_file()  # a command of this machine may have written it
        try:
            known = await self._channel.ask(
                peer, REGISTER, register.digest, timeout_seconds=ASK_SECONDS
            )
            if not known:
                return
            await asyncio.to_thread(self._members.hear_register, known)
            told = register.digest + register.to_bytes()
            await self._channel.ask(peer, REGISTER, told, timeout_seconds=ASK_SECONDS)
        except PeerRefused as error:
            if REVOKED_WORDS in error.cause:
                await self._lobby.learn_standing([peer], self._members)
        except (PeerError, RemoteProtocolError, OSError) as error:
            logger.debug("%s does not share its register: %s", peer, error)

    async def _keep_passes(self) -> None:
        """Let a later `swarm revoke` know whose machine each peer was."""
        passes = self._members.passes
        try:
            if news := passes.take_news():
                await asyncio.to_thread(passes.write, news)
        except OSError as error:
            logger.warning("the passes of peers are not kept: %s", error)

    async def _renew_in_time(self) -> None:
        """Ask who has certified this machine to do so again, some time before that ends."""
        is_due = time.monotonic() - self._renewed_at > RENEW_SECONDS
        if not self._members.is_ending or not is_due:
            return
        self._renewed_at = time.monotonic()
        there = await self._there()
        issuers = sorted(self._members.issuers(), key=lambda peer: peer not in there)
        for peer in issuers[:HANDED_ON]:
            if await self._has_renewed(peer):
                return
        logger.warning(
            "nobody renews this machine's certificate, which ends in %.0f days: let a node of the"
            " machine that admitted it run, or join with a fresh invite then",
            max(0.0, self._members.seconds_left / 86400),
        )

    async def _has_renewed(self, peer: str) -> bool:
        try:
            made = await self._channel.ask(peer, RENEW, b"", timeout_seconds=ASK_SECONDS)
            if holding := self._members.take_renewed(made):
                await asyncio.to_thread(self._keep, holding)
                logger.info("%s has renewed this machine's certificate", peer)
            return holding is not None
        except (PeerError, RemoteProtocolError, BadInput) as error:
            logger.info("%s does not renew our certificate: %s", peer, error)
            return False

    async def _answer_renew(self, peer: str, _payload: bytes) -> bytes:
        return self._members.renew(peer)

    async def _delegates(self) -> list[str]:
        """A few peers that may certify: nodes on the board before programs that may be gone."""
        there = await self._there()
        return sorted(self._members.delegates(), key=lambda peer: peer not in there)[:HANDED_ON]

    async def _there(self) -> Collection[str]:
        try:
            nodes = await self._board.read(Capability, latest=False)
            return nodes.keys() | (await self._board.read(Relay, latest=False)).keys()
        except SwarmError as error:
            logger.debug("nobody is on the board: %s", error)
            return ()

    async def _others(self, count: int) -> list[str]:
        others = [peer for peer in await self._there() if peer != self._channel.peer]
        others = others or self._members.peers()  # nobody answers us: perhaps they say why
        return random.sample(others, min(count, len(others)))

    async def _answer_register(self, _peer: str, payload: bytes) -> bytes:
        """Take what the asker knows, if it says so; say what we know if that differs."""
        digest, told = payload[:DIGEST_BYTES], payload[DIGEST_BYTES:]
        if told:
            await asyncio.to_thread(self._members.hear_register, told)
        register = self._members.register
        return b"" if digest == register.digest else register.to_bytes()

    async def _redeem(self, peer: str, request: bytes) -> bytes:
        self._members.require_sound(request)
        await self._hear_delegates(ADMIT_SECONDS)
        try:
            granted = self._members.redeem(request)
        except OSError as error:
            raise PeerRefused("This delegate cannot write what it grants.") from error
        logger.info("certified a machine for %s", peer)
        await self._hear_delegates(TELL_SECONDS)
        return granted

    async def _hear_delegates(self, seconds: float) -> None:
        """Know what other delegates do, and they what we do; who is gone is not waited for."""
        try:
            async with asyncio.timeout(seconds):
                await self._hear(await self._delegates())
        except TimeoutError:
            logger.info("a delegate is slow to say what it knows")


def certify_founder(swarm: str, founder: Identity, state: Path, manifest: Path) -> None:
    """Certify the founder's own machine, unless the swarm was founded before there was that."""
    machines = MachineState(state)
    if machines.holding(swarm) is None and not _was_founded(swarm, manifest):
        machines.keep(swarm, found(swarm, founder, machines.identity(), CLOCK.now()))


def _was_founded(swarm: str, manifest: Path) -> bool:
    try:
        SignedManifest.of_bytes(manifest.read_bytes()).manifest_of(swarm)
    except (OSError, RemoteProtocolError):
        return False
    return True
