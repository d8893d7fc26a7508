"""The command `revoke`: end a machine's membership, and tell every peer that is there."""

import argparse
import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from client.cli.invite import members_of
from client.cli.look import invite_of
from client.cli.terminal import Terminal
from client.event_loop_thread import EventLoopThread
from client.network import Connect, Links
from swarm.errors import BadInput, PeerError, PeerRefused, RemoteProtocolError, Unreachable
from swarm.invites import Invite
from swarm.records import Capability, Relay
from swarm.state_folder import own_environment, state_folder
from swarm.trust.identity import Identity
from swarm.trust.machine_state import MachineState
from swarm.trust.members import Machine, Members
from swarm.trust.membership import pass_of
from swarm.trust.peer_lists import peer_id

REGISTER, PASS = "register", "pass"  # the questions of admissions and channel
ASK_SECONDS = 5.0
TOLD = 64  # peers that the command tells itself; they tell the others
SHOWN = 8  # machines in a line

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Revoked:
    """What came of it."""

    machines: tuple[str, ...]
    told: int = 0  # peers
    came_with: tuple[str, ...] = ()  # machines that the same invite let in, and that stay
    returned: tuple[str, ...] = ()  # that were out by the word of the revoked one alone


def run_revoke(given: argparse.Namespace, terminal: Terminal, connect: Connect) -> int:
    """`swarm revoke PEER`."""
    known, peer = invite_of(given), peer_id(given.peer)
    machine = members_of(known, given.state)
    if machine is None:
        raise BadInput(
            "This swarm certifies no members: who knows its key can always come back.",
            "Found it anew with --swarm NAME --key, and invite those who may stay.",
        )
    with EventLoopThread() as loop_thread:
        try:
            with loop_thread.hold(connect(known)) as links:
                revoking = Revoking(known, _members_of(links), links)
                done = loop_thread.run(revoking.revoke(peer, with_invite=given.with_invite))
        except Unreachable as error:
            logger.warning("nobody can be told now: %s", error.cause)
            revoking = Revoking(known, _alone(known, machine, given))
            done = loop_thread.run(revoking.revoke(peer, with_invite=given.with_invite))
    show_revoked(done, peer, terminal)
    return 0


def show_revoked(done: Revoked, peer: str, terminal: Terminal) -> None:
    """Say what came of it, and what to think of."""
    more = len(done.machines) - 1
    also = f" and {more} more that came in by the same invite" if more else ""
    if done.told:
        terminal.line(f"revoked {peer}{also}: told {done.told} peers, which tell the others")
    else:
        terminal.line(
            f"revoked {peer}{also}: nobody is told yet; a node of this machine will do it"
        )
    terminal.note("All invites made before now are void; `swarm invite` makes new ones.")
    if done.came_with:
        terminal.note(
            f"The same invite let in others, which stay: {_shown(done.came_with)}. Revoke those"
            " that are the same person's, or all of them with --with-invite."
        )
    if done.returned:
        terminal.note(
            "Only the revoked machine had revoked these, and they may be in again:"
            f" {_shown(done.returned)}. Revoke them yourself if they are to stay out."
        )


class Revoking:
    """Revokes machines, as a delegate that reaches the swarm, or that reaches nobody."""

    def __init__(self, known: Invite, members: Members, links: Links | None = None) -> None:
        self._known, self._members, self._links = known, members, links

    async def revoke(self, peer: str, *, with_invite: bool = False) -> Revoked:
        """Revoke the machine of a peer, or that machine itself; raises BadInput, OSError."""
        register = self._members.register
        there = await self._there()
        await self._hear(there)  # so that what they know is told with ours
        machine = await self._machine_of(peer, there)
        came_with = register.came_with(machine)
        machines = (machine, *sorted(came_with if with_invite else ()))
        self._require_lower(machines)
        returned = register.revoked_only_by(machine)
        for each in machines:
            await asyncio.to_thread(self._members.revoke, each)
        told = register.digest + register.to_bytes()
        answers = await self._ask_all(there, REGISTER, told)
        heard = sum(answer is not None for answer in answers)
        stay = () if with_invite else tuple(sorted(came_with))
        return Revoked(machines, heard, stay, tuple(sorted(returned)))

    async def _there(self) -> list[str]:
        """Who is there, for as many as we tell."""
        if self._links is None:
            return []
        board = self._links.board
        return list({**await board.read(Capability), **await board.read(Relay)})[:TOLD]

    async def _hear(self, there: Sequence[str]) -> None:
        """Take what peers know of revocations; one that is gone holds up none of the others."""
        known = await self._ask_all(there, REGISTER, self._members.register.digest)
        for peer, register in zip(there, known, strict=True):
            try:
                if register:
                    await asyncio.to_thread(self._members.hear_register, register)
            except RemoteProtocolError as error:
                logger.info("%s does not say what it knows: %s", peer, error)

    async def _machine_of(self, peer: str, there: Iterable[str]) -> str:
        """Whose node or client a peer is, by the pass that it has shown to us or to somebody."""
        members = self._members
        machine = members.passes.machine_named(peer)
        if machine or members.register.has_let_in(peer):
            return machine or peer
        for shown in await self._ask_all(there, PASS, peer.encode()):
            found = pass_of(self._known.swarm, shown or b"")
            if found is not None and peer in found.chain.peers[-2:]:
                members.passes.note(found)
                return found.machine
        raise BadInput(
            f"No certificate of {peer} was seen, here or by a peer that is there.",
            "Ask again while it, or a peer that has met it, is up.",
        )

    def _require_lower(self, machines: Iterable[str]) -> None:
        """Raise BadInput if our word counts for nothing against one of them."""
        own = self._members.machine.holding
        if not set(machines).isdisjoint(own.chain.peers):
            raise BadInput("That is this very machine, or one above it.", "Name another peer.")
        places = (self._members.passes.place_of, self._members.register.place_of)
        for machine in machines:
            if any(0 < place_of(machine) <= own.rank for place_of in places):
                raise BadInput(
                    f"The machine {machine} was admitted by one above this one, which cannot"
                    " revoke it.",
                    "Do it on the founder's machine.",
                )

    async def _ask_all(
        self, peers: Iterable[str], name: str, payload: bytes
    ) -> Sequence[bytes | None]:
        return await asyncio.gather(*(self._ask(peer, name, payload) for peer in peers))

    async def _ask(self, peer: str, name: str, payload: bytes) -> bytes | None:
        assert self._links is not None
        try:
            return await self._links.channel.ask(peer, name, payload, timeout_seconds=ASK_SECONDS)
        except (PeerRefused, PeerError, RemoteProtocolError):
            return None


def _members_of(links: Links) -> Members:
    assert links.members is not None, "the swarm certifies its members"
    return links.members


def _alone(known: Invite, machine: Machine, given: argparse.Namespace) -> Members:
    """This machine without any peer."""
    machines = MachineState(given.state or state_folder(own_environment()))
    register, passes = machines.register(known.swarm), machines.passes(known.swarm)
    return Members(known.swarm, Identity.throwaway().peer, machine, register, passes)


def _shown(machines: tuple[str, ...]) -> str:
    more = f" and {len(machines) - SHOWN} more" if len(machines) > SHOWN else ""
    return ", ".join(machines[:SHOWN]) + more
