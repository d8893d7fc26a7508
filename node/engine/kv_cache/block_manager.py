"""BlockManager: which session holds which blocks, what is reserved and shared; no tensor in sight.

A session reserves the blocks of its prompt and of some answer; beyond them it grows as long as
there are free blocks. Sessions whose prompts begin alike share the blocks that these fill: whoever
writes into one of them leaves it to the others, so until its first step others are outstanding
for it (copy on write).
"""

from collections.abc import Sequence
from typing import Protocol

from node.engine.kv_cache.block_pool import BLOCK_TOKENS, BlockPool, blocks_for
from node.engine.kv_cache.block_table import BlockTable
from node.engine.kv_cache.prefix_cache import FEWEST_ROWS, PrefixCache, Prompt
from swarm.errors import EngineError, NoRoom

HEADROOM_TOKENS = 256  # of its answer, that are reserved for a session besides its prompt


class BlockStorage(Protocol):
    """Where the rows of the blocks lie."""

    def copy(self, source: int, target: int, rows: int) -> None:
        """Copy the first rows of a block into another one."""
        ...

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero blocks that nobody holds any more."""
        ...


class BlockManager:
    """Gives the blocks of one KV store to sessions; what lies in them is moved by `storage`."""

    def __init__(self, blocks: int, storage: BlockStorage) -> None:
        self._storage = storage
        self._tables: dict[str, BlockTable] = {}
        self._outstanding = 0  # blocks, to all sessions together
        self.resize(blocks)

    def resize(self, blocks: int) -> None:
        """Begin anew with so many blocks; raises EngineError while there are sessions."""
        if self._tables:
            raise EngineError("A KV store in use cannot shrink.", "Close its sessions first.")
        self._pool = BlockPool(blocks)
        self.prefixes = PrefixCache(self._pool)

    @property
    def free_tokens(self) -> int:
        """Tokens that are neither used nor reserved: kept prompts give way to sessions."""
        return (self._pool.available - self._outstanding) * BLOCK_TOKENS

    @property
    def block_count(self) -> int:
        """How many blocks there are."""
        return self._pool.count

    @property
    def sessions(self) -> list[str]:
        """The open sessions."""
        return list(self._tables)

    def growth(self, most: int) -> int:
        """Blocks that the sessions may ask for beyond their reservations, at most so many each."""
        return sum(min(most, table.remaining) for table in self._tables.values())

    def open(self, session: str, capacity: int, known: int = 0, spare: int = 0) -> BlockTable:
        """Reserve blocks for `known` tokens of a new session and some more.

        It may grow up to `capacity` tokens, if there are free blocks then. Of those that are free
        now it has to leave `spare` to the sessions that are there. Raises NoRoom and EngineError.
        """
        if session in self._tables:
            raise EngineError(f"Session {session} is open already.", "Close it first.")
        if capacity < 1:
            raise EngineError(f"A session of {capacity} tokens is no session.")
        tokens = min(capacity, known + HEADROOM_TOKENS)
        table = BlockTable(session, capacity, blocks_for(tokens))
        is_possible = blocks_for(capacity) <= self._pool.count
        if not is_possible or table.reserved + spare > self._pool.available - self._outstanding:
            free = f"{self.free_tokens} are free, {spare * BLOCK_TOKENS} of them for others"
            raise NoRoom(f"No room for {tokens} tokens: {free}.")
        table.earmarked = self._pool.earmark(table.reserved)
        self._outstanding += table.outstanding
        self._tables[session] = table
        return table

    def share(self, session: str, prompt: Prompt) -> int:
        """Give a new session the rows of its prompt that are here already; returns how many."""
        table = self.table(session)
        table.prompt = prompt
        others = [each for each in self._tables.values() if each is not table]
        found, blocks = self.prefixes.longest(prompt, [each.as_prefix() for each in others])
        if not found:
            return 0
        whole, rest = divmod(min(found, table.reserved * BLOCK_TOKENS), BLOCK_TOKENS)
        shared = self._borrow(table, blocks[:whole])
        if shared < whole or not rest or not self._begin_block(table, blocks[whole], rest):
            rest = 0
        table.length = shared * BLOCK_TOKENS + rest
        return table.length

    def grow(self, session: str, position: int, end: int) -> None:
        """Make rows [position, end) the session's own to write; raises NoRoom and changes nothing.

        In blocks that other sessions use it forgets its rows from `position` on.
        """
        table = self.table(session)
        first = position // BLOCK_TOKENS
        leaves = first < len(table.blocks) and self._pool.ref_count(table.blocks[first]) > 1
        stays = first if leaves else len(table.blocks)
        more = max(0, blocks_for(end) - stays)
        if more or table.copy_on_write or table.without_cow_reserve:
            self._check_room(table, stays, more)
            source = table.blocks[first] if leaves and position % BLOCK_TOKENS else None
            self._settle(table, stays, position)
            for _ in range(more):
                self._use(table, [self._take(table)])
            if source is not None:  # another session holds it still
                self._storage.copy(source, table.blocks[first], position % BLOCK_TOKENS)
        self._clear(self.prefixes.evict_in(table.blocks[first : blocks_for(end)]))

    def _check_room(self, table: BlockTable, stays: int, more: int) -> None:
        """Raise NoRoom unless a session can leave all blocks but the first, and take others."""
        freed = sum(self._pool.ref_count(block) == 1 for block in table.blocks[stays:])
        reserved = max(0, table.reserved - stays)
        outstanding = self._outstanding - table.outstanding + reserved
        left = self._pool.available + freed - outstanding - max(0, more - reserved)
        if left < 0:
            asked = f"{more * BLOCK_TOKENS} tokens are wanted"
            raise NoRoom(f"No room to grow: {asked}, {self.free_tokens} are free.")

    def _settle(self, table: BlockTable, stays: int, position: int) -> None:
        """Leave all blocks but the first to others, and need no more copies."""
        self._outstanding -= table.outstanding
        left = table.blocks[stays:]
        table.copy_on_write, table.without_cow_reserve = 0, False
        if left:
            table.set_blocks(table.blocks[:stays])
            table.length = position
        self._outstanding += table.outstanding
        self._clear(self._pool.release(left))

    def table(self, session: str) -> BlockTable:
        """The place of an open session; raises EngineError."""
        if session not in self._tables:
            raise EngineError(f"Session {session} is not open here.", "Open it again.")
        return self._tables[session]

    def rollback(self, session: str, length: int) -> None:
        """Forget the rows from `length` on; raises EngineError."""
        table = self.table(session)
        if not 0 <= length <= table.length:
            raise EngineError(f"Session {session} cannot go back to {length} of {table.length}.")
        table.length = length

    def close(self, session: str) -> None:
        """Free a session, but keep its prompt for later; one that is not open is fine."""
        table = self._tables.pop(session, None)
        if table is None:
            return
        self._outstanding -= table.outstanding
        if table.prefix >= FEWEST_ROWS:
            self._clear(self.prefixes.add(table.as_prefix()))
        self._pool.unmark(table.earmarked)
        self._clear(self._pool.release(table.blocks))
        self._clear(self.prefixes.trim())

    def _borrow(self, table: BlockTable, blocks: list[int]) -> int:
        """Hold blocks of others, with room for copies until the first step; returns how many.

        Without that room only blocks that nobody else uses then, which it may write into itself.
        """
        unreserved = {
            block
            for each in self._tables.values()
            if each.without_cow_reserve
            for block in each.blocks
        }
        room = self._pool.available - self._outstanding
        for count, block in enumerate(blocks):
            if block in unreserved:
                return count
            is_used = self._pool.ref_count(block) > 0
            self._outstanding -= table.outstanding
            table.copy_on_write += is_used or room > 0
            table.without_cow_reserve |= not is_used and room <= 0
            room -= not is_used
            self._outstanding += table.outstanding
            self._use(table, [block])
        return len(blocks)

    def _use(self, table: BlockTable, blocks: list[int]) -> None:
        """Append blocks to a session's own."""
        self._pool.acquire(blocks)
        self._outstanding -= table.outstanding
        table.set_blocks([*table.blocks, *blocks])
        self._outstanding += table.outstanding

    def _take(self, table: BlockTable) -> int:
        """A free block for a session, if need be in place of kept prompts; there must be one."""
        earmarked = table.earmarked[len(table.blocks) :]
        block = self._pool.find_free(earmarked)
        while block is None:
            self._clear(self.prefixes.evict())
            block = self._pool.find_free(earmarked)
        return block

    def _begin_block(self, table: BlockTable, source: int, rows: int) -> bool:
        """Append a copy of the first rows of another's block, unless there is no room for one."""
        self._pool.acquire([source])  # so that it stays until it is copied
        has_room = self._pool.available - self._outstanding + bool(table.unallocated) > 0
        if has_room:
            block = self._take(table)
            self._storage.copy(source, block, rows)
            self._use(table, [block])
        self._clear(self._pool.release([source]))
        return has_room

    def _clear(self, blocks: list[int]) -> None:
        if blocks:
            self._storage.clear(blocks)
