"""The command `invite`: a fresh invite to a swarm that this machine is in, as a line or QR code."""

import argparse
import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from client.cli.look import invite_of
from client.cli.qr_code import qr_code, qr_size
from client.cli.terminal import Terminal
from client.event_loop_thread import EventLoopThread
from client.network import Connect, Links
from swarm.dht.bootstrap_peers import (
    bootstrap_addresses,
    relay_addresses,
    relays_in,
    without_circuits,
)
from swarm.errors import BadInput, Unreachable
from swarm.invites import Invite, peer_of_address
from swarm.p2p.address_book import AddressBook
from swarm.p2p.addresses import own_homes
from swarm.p2p.tcp_probe import tcp_problem
from swarm.records import Capability, Relay
from swarm.state_folder import own_environment, state_folder
from swarm.trust.machine_state import MachineState
from swarm.trust.members import Machine
from swarm.trust.network_clock import CLOCK
from swarm.trust.tickets import AS_DELEGATE, ONCE, sell

TRIED = 16  # remembered addresses

logger = logging.getLogger(__name__)


def run_invite(
    given: argparse.Namespace,
    terminal: Terminal,
    connect: Connect,
    clock: Callable[[], float] = time.time,
) -> int:
    """`swarm invite`."""
    known = invite_of(given)
    expires = clock() + given.expires
    book = AddressBook.open(given.state or state_folder(own_environment()), known.swarm)
    with EventLoopThread() as loop_thread:
        try:
            with loop_thread.hold(connect(known)) as links:
                invite = loop_thread.run(fresh_invite(links, known, book))
        except Unreachable as error:
            logger.warning("the invite names the peers known before: %s", error.cause)
            invite = remembered_invite(known, book)
        members = members_of(known, given.state)
    invite = replace(invite, expires=float(int(expires)))
    if members:
        invite = replace(invite, ticket=ticket_of(members, given, expires))
    elif given.once or given.delegate:
        raise BadInput(
            "This swarm certifies no members, so no invite of it can be for one machine alone.",
            "Found a private one with this program: swarm node --host --key",
        )
    show_invite(invite, given, terminal)
    return 0


def members_of(known: Invite, state: Path | None) -> Machine | None:
    """This machine in a swarm that certifies its members; raises BadInput if it may not invite."""
    machines = MachineState(state or state_folder(own_environment()))
    holding = machines.holding(known.swarm)
    if holding is None:
        return None
    if not holding.is_delegate:
        raise BadInput(
            "Only the founder's machine, and those that it made delegates, may do that.",
            "Do it there; `swarm invite --once --delegate` there invites one more delegate.",
        )
    return Machine(machines.identity(), holding)


def ticket_of(machine: Machine, given: argparse.Namespace, expires: float) -> bytes:
    """What the invite buys a membership with; raises BadInput if it would buy nothing."""
    if given.delegate and not machine.holding.may_make_delegates:
        raise BadInput(
            "Only the founder's machine makes delegates; this one is a delegate itself.",
            "Do it there, or leave out --delegate: invites of this machine admit members.",
        )
    swarm = invite_of(given).swarm
    machines = MachineState(given.state or state_folder(own_environment()))
    made = max(CLOCK.now(), machines.register(swarm).tickets_since + 1)
    flags = (ONCE if given.once or given.delegate else 0) | (AS_DELEGATE if given.delegate else 0)
    return sell(swarm, (machine.holding, machine.identity), made, expires, flags)


async def fresh_invite(links: Links, known: Invite, book: AddressBook) -> Invite:
    """The swarm's invite with peers that are there now; raises Unreachable.

    Remembered ones fill it up where something listens at their addresses, and relays of theirs.
    """
    capabilities = await links.board.read(Capability)
    relays = await links.board.read(Relay)
    first = peer_of_address(known.addresses[0])  # a node of this machine, where there is one
    own = [each for each in known.addresses if peer_of_address(each) == first]
    own = own if first in capabilities else []
    remembered = [each for each in book.addresses() if not _is_out(peer_of_address(each), links)]
    listening = await _listening(without_circuits(remembered))
    addresses = bootstrap_addresses(own, capabilities, relays, listening, own_homes())
    more = await _listening((*known.relays, *relays_in(remembered)))
    return replace(
        known, addresses=addresses or known.addresses, relays=relay_addresses(relays, more)
    )


def remembered_invite(known: Invite, book: AddressBook) -> Invite:
    """The swarm's invite with the peers that it names and those that are remembered."""
    at = (*known.addresses, *without_circuits(book.addresses()))
    relays = (*known.relays, *relays_in(book.addresses()))
    addresses = bootstrap_addresses((), {}, {}, at, own_homes())
    return replace(known, addresses=addresses, relays=relay_addresses({}, relays))


def _is_out(peer: str, links: Links) -> bool:
    """Whether a peer is known to be no member any more."""
    return bool(links.members and links.members.problem_with(peer))


async def _listening(addresses: Sequence[str]) -> tuple[str, ...]:
    """Those of the first addresses at which something listens now."""
    tried = addresses[:TRIED]
    problems = await asyncio.gather(*map(tcp_problem, tried))
    return tuple(each for each, problem in zip(tried, problems, strict=True) if not problem)


def show_invite(invite: Invite, given: argparse.Namespace, terminal: Terminal) -> None:
    """Print the line alone, so that it can be piped; the QR code and until when beside it."""
    if given.qr:
        show_code(invite, terminal)
    terminal.line(invite.encode())
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(invite.expires))
    terminal.note(f"It names {_peers(invite)} and holds until {until}.")


def show_code(invite: Invite, terminal: Terminal) -> None:
    """Show the invite as a QR code, with fewer addresses where all of them do not fit."""
    text, shown = fitting_code(invite, terminal.width, terminal.height)
    columns, lines = qr_size(text)
    if terminal.width and columns > terminal.width:
        terminal.note(
            f"The QR code takes {columns} columns, and this terminal has {terminal.width}: widen it"
            " and ask again, or send the line."
        )
        return
    terminal.picture(qr_code(text))
    if shown != invite:
        terminal.note(f"The code names {_peers(shown)}, at one address each; the line all.")
    if terminal.height and lines > terminal.height:
        terminal.note(f"The code takes {lines} lines: make this window higher to see all of it.")


def fitting_code(invite: Invite, width: int, height: int) -> tuple[str, Invite]:
    """What a QR code says of an invite and still fits the terminal, and the invite that it names.

    Where nothing fits its height that counts for nothing; where nothing fits its width, the least.
    Zero is without end.
    """
    by_peer = {peer_of_address(each): each for each in reversed(invite.addresses)}
    one_each = tuple(reversed(by_peer.values()))
    shorter = [one_each[:count] for count in range(len(one_each), 0, -1)]
    versions = [invite, *(replace(invite, addresses=at, relays=()) for at in shorter)]
    codes = [(each.encode_for_qr(), each) for each in versions]
    for bounds in ((width, height), (width, 0)):
        for text, each in codes:
            size = qr_size(text)
            if all(bound == 0 or need <= bound for need, bound in zip(size, bounds, strict=True)):
                return text, each
    return codes[-1]


def _peers(invite: Invite) -> str:
    count = len({peer_of_address(each) for each in invite.addresses})
    return "1 peer" if count == 1 else f"{count} peers"
