"""An event loop whose time leaps over every wait, so that deadlines cost a test nothing."""

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class SkippingLoop(asyncio.SelectorEventLoop):
    """Waits for nobody: what would be waited is added to its time."""

    def __init__(self) -> None:
        self._skipped = 0.0
        super().__init__(_Impatient(self))
        self.slips: list[Mapping[str, Any]] = []  # what callbacks and forgotten tasks raised
        self.set_exception_handler(lambda _loop, context: self.slips.append(context))

    def time(self) -> float:
        """Seconds since the loop began, all of them skipped."""
        return self._skipped

    def skip(self, seconds: float) -> None:
        """Called by the selector in place of a wait."""
        self._skipped += seconds


class _Impatient(selectors.SelectSelector):
    def __init__(self, loop: SkippingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        """What is ready now; the time of a wait passes at once."""
        assert timeout is not None, "nothing will ever happen: the story hangs"
        self._loop.skip(max(timeout, 0.0))
        return super().select(0)


def run_skipping(story: Coroutine[Any, Any, T]) -> T:
    """Run a story to its end; fails on whatever slipped out of a callback."""
    loop = SkippingLoop()
    try:
        result = loop.run_until_complete(story)
        loop.run_until_complete(_settled())
        assert not loop.slips, loop.slips
        return result
    finally:
        loop.close()


async def _settled() -> None:
    """Let what is under way end, or end it."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
