"""first_answer: asks several peers for the same thing, and takes what comes first.

One after the other would wait out the deadline of each that is gone; all at once would cost every
peer an answer that one gives. So the next is asked when the one before fails, or is slow: the way
of "happy eyeballs" (RFC 8305).
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from swarm.errors import PeerError
from swarm.task_set import TaskSet

PATIENCE_SECONDS = 1.0  # before the next peer is asked as well

T = TypeVar("T")
Ask = Callable[[], Coroutine[Any, Any, T]]  # has a deadline of its own; raises PeerError


async def first_answer(
    asks: Iterable[Ask[T]], patience_seconds: float = PATIENCE_SECONDS
) -> tuple[T | None, list[PeerError]]:
    """The first answer, None if there is none, and the errors before it; the others are cancelled.

    What is no PeerError passes.
    """
    errors: list[PeerError] = []
    async with TaskSet() as tasks:
        waiting: set[asyncio.Task[T]] = set()
        left = list(asks)
        while left or waiting:
            if left:
                waiting.add(tasks.create("asking a peer", left.pop(0)(), is_awaited=True))
            timeout = patience_seconds if left else None
            done, waiting = await asyncio.wait(
                waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            ends = [await _end_of(task) for task in done]
            errors += [end for end in ends if isinstance(end, PeerError)]
            for end in ends:
                if not isinstance(end, PeerError):
                    return end, errors
    return None, errors


async def _end_of(task: "asyncio.Task[T]") -> T | PeerError:
    try:
        return await task
    except PeerError as error:
        return error
