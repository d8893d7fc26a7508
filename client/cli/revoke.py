"""The command `revoke`: end a machine's membership, and tell every peer that is there."""

import argparse
import asyncio

from client.cli.invite import members_of
from client.cli.look import invite_of
from client.cli.terminal import Terminal
from client.event_loop_thread import EventLoopThread
from client.network import Connect, Links
from swarm.errors import BadInput, PeerError, PeerRefused, RemoteProtocolError
from swarm.invites import Invite
from swarm.records import Capability
from swarm.trust.membership import pass_of
from swarm.trust.peer_lists import peer_id

REGISTER, PASS = "register", "pass"  # the questions of swarm/dht/admissions.py
ASK_SECONDS = 5.0
TOLD = 64  # peers that the command tells itself; they tell the others


def run_revoke(given: argparse.Namespace, terminal: Terminal, connect: Connect) -> int:
    """`swarm revoke PEER`."""
    known, peer = invite_of(given), peer_id(given.peer)
    if members_of(known, given.state) is None:
        raise BadInput(
            "This swarm certifies no members: who knows its key can always come back.",
            "Found it anew with --swarm NAME --key, and invite those who may stay.",
        )
    with EventLoopThread() as loop_thread, loop_thread.hold(connect(known)) as links:
        told = loop_thread.run(revoke(links, known, peer))
    terminal.line(f"revoked {peer}: told {told} peers, which tell the others")
    terminal.note("All invites made before now are void; `swarm invite` makes new ones.")
    return 0


async def revoke(links: Links, known: Invite, peer: str) -> int:
    """Revoke the machine of a peer; returns how many peers know of it at once; raises BadInput."""
    members = links.members
    assert members is not None, "the swarm certifies its members"
    there = list(await links.board.read(Capability))[:TOLD]
    machine = await _machine_of(links, known, peer, there)
    if machine in members.machine.holding.chain.peers:
        raise BadInput("That is this very machine, or one above it.", "Name another peer.")
    for each in there:  # what they know, so that ours is told with it
        await _ask(links, each, REGISTER, members.register.digest)
    await asyncio.to_thread(members.revoke, machine)
    told = members.register.digest + members.register.to_bytes()
    answers = await asyncio.gather(*(_ask(links, each, REGISTER, told) for each in there))
    return sum(answer is not None for answer in answers)


async def _machine_of(links: Links, known: Invite, peer: str, there: list[str]) -> str:
    """Whose node or client a peer is, by the pass that it has shown to somebody."""
    for each in there:
        found = pass_of(known.swarm, await _ask(links, each, PASS, peer.encode()) or b"")
        if found is not None and peer in found.chain.peers[-2:]:
            return found.machine
    raise BadInput(
        f"No peer that is there has seen a certificate of {peer}.",
        "Ask again while it, or a peer that has met it, is up.",
    )


async def _ask(links: Links, peer: str, name: str, payload: bytes) -> bytes | None:
    try:
        return await links.channel.ask(peer, name, payload, timeout_seconds=ASK_SECONDS)
    except (PeerRefused, PeerError, RemoteProtocolError):
        return None
