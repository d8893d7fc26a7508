"""Supervisor: keeps the loops of a node going, whatever ends one of them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0  # before a loop that failed goes on


async def supervise(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run an endless loop, and begin it again after a pause whenever an exception ends it.

    Holds nothing open; only cancellation passes, and the return of a loop that is done.
    """
    while True:
        try:
            await loop()
        except Exception:  # an island: one slip of ours or of a stranger's must not end the node
            logger.exception("%s failed; it goes on in %.0f s", name, PAUSE_SECONDS)
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            return
