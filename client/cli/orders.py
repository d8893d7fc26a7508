"""The commands `pause`, `resume` and `leave`: orders for the node that runs on this machine."""

import argparse
from pathlib import Path

from client.cli.terminal import Terminal
from swarm.commands.control_socket import LocalNode, the_local_node
from swarm.errors import SwarmError

LEAVE_SECONDS = 15.0  # a node that leaves ends sooner, whatever hangs


def run_order(given: argparse.Namespace, terminal: Terminal, state: Path) -> int:
    """Give the order of a command line; raises BadInput if no node runs, or several do."""
    node = the_local_node(state, given.node)
    carry_out = {"pause": _pause, "resume": _resume, "leave": _leave}
    terminal.line(carry_out[given.command](node, given))
    return 0


def _pause(node: LocalNode, given: argparse.Namespace) -> str:
    words = {} if given.seconds is None else {"seconds": given.seconds}
    answer = node.ask("pause", **words)
    took = f"; its devices were free after {float(answer.get('seconds', 0.0)):.1f} s"
    end = "until `swarm resume`" if given.seconds is None else f"for {given.seconds / 60:.0f} min"
    return f"{node.folder.name} is paused {end}{took}"


def _resume(node: LocalNode, _given: argparse.Namespace) -> str:
    was = node.ask("resume").get("was")
    return f"{node.folder.name} {'serves again' if was else 'was not paused'}"


def _leave(node: LocalNode, _given: argparse.Namespace) -> str:
    if not node.ask_to_leave(LEAVE_SECONDS):
        raise SwarmError(
            f"{node.folder.name} has been told to leave, and has not ended yet.", "End its process."
        )
    return f"{node.folder.name} has left"
