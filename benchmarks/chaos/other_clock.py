"""A node whose wall clock can be wrong: `python -m benchmarks.chaos.other_clock SECONDS ...`.

SIGRTMIN puts it ahead by so many seconds, and right the next time. Only this process believes it,
as nothing else of a node reads the wall clock.
"""

import runpy
import signal
import sys
import time
from types import FrameType


def main() -> None:
    """Be a node with the rest of the command line."""
    ahead = float(sys.argv.pop(1))
    right, offset = time.time, 0.0

    def move(_: int, __: FrameType | None) -> None:
        nonlocal offset
        offset = 0.0 if offset else ahead

    time.time = lambda: right() + offset
    signal.signal(signal.SIGRTMIN, move)
    runpy.run_module("swarm.node", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
