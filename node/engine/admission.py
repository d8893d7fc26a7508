"""Admission: how much room a new session must leave to those that are here, or were; pure.

Who comes for the first time gives way to sessions in the middle of an answer. The leader of a stage
decides; its other ranks take whom it has let in.
"""

from collections import deque
from collections.abc import Callable

from node.engine.cache import HEADROOM_TOKENS, KVStore
from node.engine.pages import pages_for
from node.engine.slots import Slot

NEWCOMERS_LEAVE = pages_for(HEADROOM_TOKENS)  # pages, to each session that may want them
OTHERS_LEAVE = 1
RESERVED_SECONDS = 5.0  # for a session that was sent away to come again


class Admission:
    """Knows who was sent away in the middle of an answer, and keeps room for a while."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sent_away: deque[tuple[float, int]] = deque()  # until when, and how many pages

    def spare(self, store: KVStore, *, is_new: bool) -> int:
        """Pages that must stay free when another session is let in."""
        if not is_new:
            return store.growth(OTHERS_LEAVE)
        while self._sent_away and self._sent_away[0][0] < self._clock():
            self._sent_away.popleft()
        return store.growth(NEWCOMERS_LEAVE) + sum(pages for _, pages in self._sent_away)

    def sent_away(self, slot: Slot) -> None:
        """A session found no page; it will come again with what it has."""
        tokens = min(slot.capacity, slot.length + HEADROOM_TOKENS)
        self._sent_away.append((self._clock() + RESERVED_SECONDS, pages_for(tokens)))

    def came_again(self) -> None:
        """A session was let in that had begun elsewhere, or here."""
        if self._sent_away:
            self._sent_away.popleft()
