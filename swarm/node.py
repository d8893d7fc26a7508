"""The door for volunteers: `python -m swarm.node --join INVITE`."""

import sys

from swarm.doors import open_room


def main() -> int:
    """Run a node with the arguments of this process; returns the exit code."""
    try:
        room = open_room("node.main")
    except ImportError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    code: int = room.main(sys.argv[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
