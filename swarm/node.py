"""The door for volunteers: `python -m swarm.node --join INVITE`."""

import gc
import sys

from swarm.commands.command_line import carry_out, read_arguments
from swarm.commands.entry_points import import_package, leave


def main() -> int:
    """Run a node with the arguments of this process; returns the exit code."""
    return carry_out(_live, needs_output=False)


def _live() -> int:
    node = import_package("node.main")
    gc.freeze()  # what is imported stays: looking through it again and again would stall the node
    code: int = node.main(read_arguments(sys.argv[1:]))
    return code


if __name__ == "__main__":
    leave(main())
