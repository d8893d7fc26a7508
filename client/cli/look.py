"""The commands `status` and `plan`: look at a swarm, and ask no model anything."""

import argparse
import logging

from client.cli.own_node import OwnView, own_view
from client.cli.swarm_status import SwarmStatus, find_status, status_of, why_idle
from client.cli.tables import (
    DrawLayers,
    show_idle,
    show_links,
    show_peers,
    show_plan,
    show_plan_table,
    show_planner,
    show_stages,
)
from client.cli.terminal import Terminal
from client.event_loop_thread import EventLoopThread
from client.network import Connect
from client.routing.live_plan import find_plan, read_plan, trust_of
from swarm.invites import Invite, choose_invite
from swarm.records import Advert, Capability, Lease, Relay
from swarm.state_folder import own_environment, state_folder

KNOWN_SECONDS = 5.0  # after which an empty board is that of a swarm that nobody knows
Found = tuple[SwarmStatus, dict[str, str]]  # and why devices are idle

logger = logging.getLogger(__name__)


def run_status(given: argparse.Namespace, terminal: Terminal, connect: Connect) -> int:
    """`swarm status`: as the node on this machine sees it, if one is in the swarm, else by asking.

    An invite on the command line is always asked about: whether it lets us in is a question, too.
    """
    invite = invite_of(given)
    view = (
        None
        if given.join
        else own_view(given.state or state_folder(own_environment()), invite.swarm)
    )
    found = view and _seen_by(view, invite)
    status, why = found or _asked(invite, connect)
    if given.json:
        here = {"here": view.to_json()} if view and found else {}
        terminal.json(status.to_json() | {"idle": why} | here)
        return 0
    terminal.head(f"{status.swarm} serves {status.model}")
    if view and found:
        terminal.line(f"here: {view.words}")
    show_planner(terminal, status)
    show_peers(terminal, status)
    show_stages(terminal, status)
    show_links(terminal, status)
    show_idle(terminal, status, why)
    return 0


def _asked(invite: Invite, connect: Connect) -> Found:
    """The status, and what idle devices wait for, by a network of our own; raises SwarmError."""
    with EventLoopThread() as loop_thread, loop_thread.hold(connect(invite)) as links:
        status = loop_thread.run(find_status(links.board, invite, KNOWN_SECONDS))
        live = loop_thread.run(find_plan(links.board, links.channel, trust_of(invite)))
    return status, why_idle(status, live)


def _seen_by(view: OwnView, invite: Invite) -> Found | None:
    """The same by our own node's word; None if it makes no sense to this version."""
    try:
        found = view.read(Capability), view.read(Advert), view.read(Lease), view.read(Relay)
        status = status_of(invite, *found)
        return status, why_idle(status, view.live)
    except ValueError as error:
        logger.info("what %s tells is not understood: %s", view.folder, error)
        return None


def run_plan(
    given: argparse.Namespace, terminal: Terminal, connect: Connect, draw: DrawLayers
) -> int:
    """`swarm plan`."""
    invite = invite_of(given)
    with EventLoopThread() as loop_thread, loop_thread.hold(connect(invite)) as links:
        status = loop_thread.run(find_status(links.board, invite, KNOWN_SECONDS))
        live = loop_thread.run(read_plan(links.board, links.channel, trust_of(invite)))
    if given.json:
        terminal.json(live.document)
        return 0
    show_plan(terminal, live, status, draw)
    show_plan_table(terminal, live, status)
    return 0


def invite_of(given: argparse.Namespace) -> Invite:
    """The invite of a command line, or what stands in for it; raises BadInvite."""
    return choose_invite(given.join, own_environment(), given.state)
