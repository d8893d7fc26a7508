"""The priority of the thread that asks, for work that may wait until nobody else wants a core."""

import contextlib
import os
import threading

LOWEST_PRIORITY = 19


def lower_own_priority() -> None:
    """Let everybody else go first from now on, where the system knows priorities of threads.

    There is no way back without privileges; threads that this one begins are as low.
    """
    with contextlib.suppress(OSError, AttributeError):  # Linux does
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
