"""Certification: our proof that we may plan, and proofs for peers that have served well.

In an open swarm the founder may plan, and whoever it certifies; those certify others, so that the
swarm outlives its founder. In a private swarm every member may plan, and nothing is certified.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import Container
from pathlib import Path

from node.control.membership import ALIVE_SECONDS, Membership
from swarm.errors import PeerError, PeerRefused, RemoteProtocolError
from swarm.p2p.channel import Channel
from swarm.trust.certificates import (
    CERTIFICATE_SECONDS,
    PlannerTrust,
    depth_of,
    extend_proof,
    founder_proof,
)
from swarm.trust.identity import Identity, is_founder
from swarm.trust.network_clock import CLOCK

logger = logging.getLogger(__name__)

PROOF_FILE = "planner.proof"
FOUNDER_SERVED_SECONDS = 600.0  # a peer serves so long before the founder certifies it
OTHERS_SERVED_SECONDS = 3 * 3600.0  # and before another planner does
GAP_SECONDS = 60.0  # not served for so long: its time begins anew
SEEK_SECONDS = 60.0  # between our requests
ASKED = 3  # peers at a time


class Certification:
    """The planner's certificate of one node, and those that it gives."""

    def __init__(
        self,
        identity: Identity,
        trust: PlannerTrust,
        folder: Path,
        channel: Channel,
        *,
        trusted: frozenset[str] = frozenset(),
    ) -> None:
        """`trusted` peers are certified at once when they ask."""
        self._identity = identity
        self._trust = trust
        self._path = folder / PROOF_FILE
        self._channel = channel
        self._trusted = trusted
        self._serving: dict[str, tuple[float, float]] = {}  # since when, and seen last
        self._sought_at = -SEEK_SECONDS
        self.proof = founder_proof(trust.swarm, identity.peer) or self._read()
        channel.answer("certify", self._certify)

    @property
    def may_plan(self) -> bool:
        """Whether our own proof is good now."""
        return self._trust.accepts(self._identity.peer, self.proof)

    @property
    def certifies(self) -> bool:
        """Whether there is anything to watch: we might be asked for a certificate."""
        return self.may_plan and not self._trust.is_private

    def note_service(self, membership: Membership, planned: Container[str]) -> None:
        """See which of the planned peers serve a stage and answer, and for how long they have.

        Whoever is in no plan serves nobody, whatever he or another says of him.
        """
        now = time.monotonic()
        members = {
            member.peer
            for leader, advert in membership.adverts.items()
            for stage in advert.stages
            if stage.members[0].peer == leader and not advert.leaving
            for member in stage.members
            if member.peer in planned
        }
        for peer in members:
            if membership.has_heard(peer):
                self._serving[peer] = (self._serving.get(peer, (now, now))[0], now)
        self._serving = {
            peer: (since, at)
            for peer, (since, at) in self._serving.items()
            if now - at < GAP_SECONDS
        }

    async def seek(self, membership: Membership) -> None:
        """Ask for a certificate if we have none, or ours is half over; now and then."""
        if self._trust.is_private or self._left() > CERTIFICATE_SECONDS / 2:
            return
        if time.monotonic() - self._sought_at < SEEK_SECONDS:
            return
        self._sought_at = time.monotonic()
        for peer in self._issuers(membership)[:ASKED]:
            if await self._ask(peer):
                return

    def _left(self) -> float:
        return self._trust.seconds_left(self._identity.peer, self.proof)

    def _issuers(self, membership: Membership) -> list[str]:
        """Who may certify us, the founder first."""
        able = [peer for peer in membership.present if membership.may_plan(peer)]
        others = [peer for peer in able if peer != self._identity.peer]
        random.shuffle(others)  # some cannot, or will not: not the same ones for ever
        return sorted(others, key=lambda peer: not is_founder(self._trust.swarm, peer))

    async def _ask(self, peer: str) -> bool:
        try:
            proof = await self._channel.ask(peer, "certify", b"", timeout_seconds=ALIVE_SECONDS)
        except (PeerError, RemoteProtocolError) as error:
            logger.debug("no certificate from %s: %s", peer, error)
            return False
        if self._trust.seconds_left(self._identity.peer, proof) <= self._left():
            return False
        self.proof = proof
        await asyncio.to_thread(self._write)
        logger.info("certified as a planner by %s", peer)
        return True

    async def _certify(self, peer: str, _payload: bytes) -> bytes:
        if not self.certifies:
            raise PeerRefused("This peer certifies nobody.")
        since, at = self._serving.get(peer, (0.0, 0.0))
        is_first = depth_of(self.proof) == 0
        needed = FOUNDER_SERVED_SECONDS if is_first else OTHERS_SERVED_SECONDS
        if peer not in self._trusted and at - since < needed:
            raise PeerRefused(
                f"Serve for {needed:.0f} s on end first; {at - since:.0f} s are seen."
            )
        try:
            return extend_proof(self._trust.swarm, self.proof, self._identity, peer, CLOCK.now())
        except ValueError as error:
            raise PeerRefused(f"{error}.") from error

    def _read(self) -> bytes:
        """What was certified before we restarted; nothing if it proves nothing (any more)."""
        try:
            proof = self._path.read_bytes()
        except OSError:
            return b""
        return proof if self._trust.seconds_left(self._identity.peer, proof) else b""

    def _write(self) -> None:
        fresh = self._path.with_suffix(".new")
        try:
            with fresh.open("wb") as file:
                file.write(self.proof)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:  # a restart asks again
            logger.warning("%s cannot be written: %s", self._path, error)
