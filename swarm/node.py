"""The door for volunteers: `python -m swarm.node --join INVITE`."""

import gc
import sys
from collections.abc import Sequence
from typing import Any

from swarm.commands.command_line import carry_out, read_arguments
from swarm.commands.entry_points import import_package, leave


def main() -> int:
    """Run a node with the arguments of this process; returns the exit code."""
    return carry_out(_live, needs_output=False)


def _live() -> int:
    return run_node(read_arguments(sys.argv[1:]))


def run_node(arguments: Sequence[str], program: str = "python -m swarm.node") -> int:
    """Read a node's command line, and only then load what a node needs; raises SwarmError."""
    config = import_package("node.config").read_config(arguments, program)
    node = import_package("node.main")
    gc.freeze()  # what is imported stays: looking through it again and again would stall the node
    code: int = node.main(config, _load_client)
    return code


def _load_client() -> Any:
    """The client that a node hosts for its owner: loaded when he first asks something."""
    return import_package("client.hosting").HostedClient


if __name__ == "__main__":
    leave(main())
