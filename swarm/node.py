"""The door for volunteers: `python -m swarm.node --join INVITE`."""

import gc
import sys

from swarm.doors import leave, open_room
from swarm.errors import BadInput


def main() -> int:
    """Run a node with the arguments of this process; returns the exit code."""
    try:
        room = open_room("node.main")
    except BadInput as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    gc.freeze()  # what is imported stays: looking through it again and again would stall the node
    code: int = room.main(sys.argv[1:])
    return code


if __name__ == "__main__":
    leave(main())
