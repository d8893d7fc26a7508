"""Admission: how much room a new session must leave to those that are here, or were; pure.

Who comes for the first time gives way to sessions in the middle of an answer: not to those that say
so, but to those that were here. The leader of a stage decides; its other ranks take whom it has let
in.
"""

from collections.abc import Callable

from node.engine.kv_cache.block_manager import HEADROOM_TOKENS, BlockManager
from node.engine.kv_cache.block_pool import blocks_for
from node.engine.kv_cache.block_table import BlockTable

NEWCOMERS_LEAVE = blocks_for(HEADROOM_TOKENS)  # blocks, to each session that may want them
OTHERS_LEAVE = 1
RESERVED_SECONDS = 5.0  # for a session that was sent away to come again
AWAITED_PART = 2  # at most this part of all room is kept for those
MOST_AWAITED = 1024  # sessions; those beyond come as newcomers


class Admission:
    """Knows who was sent away in the middle of an answer, and keeps room for a while."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._awaited: dict[str, tuple[float, int]] = {}  # until when, how many blocks; by session

    def spare(self, manager: BlockManager, *, is_new: bool) -> int:
        """Blocks that must stay free when another session is let in."""
        if not is_new:
            return manager.growth(OTHERS_LEAVE)
        self._forget_late_ones()
        kept = sum(blocks for _, blocks in self._awaited.values())
        return manager.growth(NEWCOMERS_LEAVE) + min(kept, manager.block_count // AWAITED_PART)

    def sent_away(self, table: BlockTable) -> None:
        """A session found no block; it will come again with what it has."""
        self._forget_late_ones()
        tokens = min(table.capacity, table.length + HEADROOM_TOKENS)
        name = _lasting_name(table.session)
        if name in self._awaited or len(self._awaited) < MOST_AWAITED:
            self._awaited[name] = self._clock() + RESERVED_SECONDS, blocks_for(tokens)

    def is_awaited(self, session: str) -> bool:
        """Whether room is kept for a session."""
        self._forget_late_ones()
        return _lasting_name(session) in self._awaited

    def came_again(self, session: str) -> None:
        """A session was let in: nothing more is kept for it."""
        self._awaited.pop(_lasting_name(session), None)

    def _forget_late_ones(self) -> None:
        now = self._clock()
        self._awaited = {name: kept for name, kept in self._awaited.items() if kept[0] >= now}


def _lasting_name(session: str) -> str:
    """What a session keeps from one epoch to the next; a worker's name for it ends in the epoch."""
    return session.rpartition(":")[0] or session
