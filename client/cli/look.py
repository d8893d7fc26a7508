"""The commands `status` and `plan`: look at a swarm, and ask no model anything."""

import argparse

from client.cli.swarm_status import find_status, why_idle
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
from swarm.state_folder import own_environment

KNOWN_SECONDS = 5.0  # after which an empty board is that of a swarm that nobody knows


def run_status(given: argparse.Namespace, terminal: Terminal, connect: Connect) -> int:
    """`swarm status`."""
    invite = invite_of(given)
    with EventLoopThread() as loop_thread, loop_thread.hold(connect(invite)) as links:
        status = loop_thread.run(find_status(links.board, invite, KNOWN_SECONDS))
        why = why_idle(
            status, loop_thread.run(find_plan(links.board, links.channel, trust_of(invite)))
        )
    if given.json:
        terminal.json(status.to_json() | {"idle": why})
        return 0
    terminal.head(f"{status.swarm} serves {status.model}")
    show_planner(terminal, status)
    show_peers(terminal, status)
    show_stages(terminal, status)
    show_links(terminal, status)
    show_idle(terminal, status, why)
    return 0


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
