"""Our own KV store: rows of all sessions in blocks of one arena, taken as the sessions grow.

A session reserves the blocks of its prompt and of some answer; beyond them it grows as long as
there are free blocks. Sessions whose prompts begin alike share the blocks that these fill: whoever
writes into one of them leaves it to the others, so until its first step others are outstanding
for it (copy on write).
"""

from collections.abc import Sequence

import numpy as np
import torch

from node.engine.kv_cache.block_pool import BLOCK_TOKENS, BlockPool, blocks_for, runs_of
from node.engine.kv_cache.block_table import BlockTable, CachedPrefix
from node.engine.kv_cache.prefix_cache import LEAST_KEPT, MOST_KEPT, Prompt, Rows, longest
from node.engine.shard_io import Array
from swarm.errors import EngineError, NoRoom

MOST_TOKENS = 1 << 20  # in one store
Arenas = tuple[torch.Tensor, torch.Tensor]  # keys and values: [kv heads, tokens, head dim]
HEADROOM_TOKENS = 256  # of its answer, that are reserved for a session besides its prompt


class KVStore:
    """Keys and values of the sessions of one shard, within `tokens` tokens."""

    def __init__(
        self,
        layers: Sequence[int],
        kv_heads: int,
        head_dims: tuple[int, int],  # of keys and of values
        tokens: int,
        like: torch.Tensor,
    ) -> None:
        self.row_values = kv_heads * head_dims[0]  # in one token's keys, in one layer
        self._pool = BlockPool(tokens // BLOCK_TOKENS)
        self._tables: dict[str, BlockTable] = {}
        self._kept: dict[int, CachedPrefix] = {}  # the latest used last
        self._keepings = 0  # so far
        self._outstanding = 0  # blocks, to all sessions together
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._arenas = tuple(
            _zeros((len(layers), kv_heads, _room(tokens // BLOCK_TOKENS), head_dim), like)
            for head_dim in head_dims
        )
        self._flat: dict[int, tuple[Array, Array]] = {}

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

    def shrink(self, tokens: int) -> None:
        """Use `tokens` only, before any session; raises EngineError while there are some."""
        if self._tables:
            raise EngineError("A KV store in use cannot shrink.", "Close its sessions first.")
        self._pool = BlockPool(min(tokens // BLOCK_TOKENS, self._pool.count))
        self._kept.clear()
        self._flat.clear()
        like = self._arenas[0].new_empty(0)
        shapes = [
            (*each.shape[:2], _room(self._pool.count), each.shape[3]) for each in self._arenas
        ]
        self._arenas = ()  # first: a GPU has no room for both
        self._arenas = tuple(_zeros(shape, like) for shape in shapes)

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
        offers = [(key, each.prompt, each.count, each.blocks) for key, each in self._kept.items()]
        offers += [(-1, each.prompt, each.prefix, each.blocks) for each in others]
        place, found = longest(prompt, (Rows(n, *each[1:3]) for n, each in enumerate(offers)))
        if not found:
            return 0
        key, _, _, blocks = offers[place]
        if key in self._kept:
            self._kept[key] = self._kept.pop(key)
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
                self._copy(source, table.blocks[first], position % BLOCK_TOKENS)
        self._drop_kept_in(table.blocks[first : blocks_for(end)])

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
        """Free a session; one that is not open is fine."""
        table = self._tables.pop(session, None)
        if table is None:
            return
        self._outstanding -= table.outstanding
        if table.prefix >= LEAST_KEPT and not self._is_kept_elsewhere(table):
            self._keepings += 1
            kept = CachedPrefix(
                table.prompt, table.prefix, table.blocks[: blocks_for(table.prefix)]
            )
            self._kept[self._keepings] = kept
            self._pool.pin(kept.blocks)
        self._pool.unmark(table.earmarked)
        self._clear(self._pool.release(table.blocks))
        while len(self._kept) > MOST_KEPT:
            self._drop(next(iter(self._kept)))

    def _is_kept_elsewhere(self, table: BlockTable) -> bool:
        """Whether another kept prompt begins with this one; those that begin this one go."""
        for key, other in list(self._kept.items()):
            shared = table.prompt.shared_with(other.prompt)
            if min(shared, other.count) >= table.prefix:
                self._kept[key] = self._kept.pop(key)
                return True
            if shared >= other.count:
                self._drop(key)
        return False

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
            self._drop(next(iter(self._kept)))
            block = self._pool.find_free(earmarked)
        return block

    def _begin_block(self, table: BlockTable, source: int, rows: int) -> bool:
        """Append a copy of the first rows of another's block, unless there is no room for one."""
        self._pool.acquire([source])  # so that it stays until it is copied
        has_room = self._pool.available - self._outstanding + bool(table.unallocated) > 0
        if has_room:
            block = self._take(table)
            self._copy(source, block, rows)
            self._use(table, [block])
        self._clear(self._pool.release([source]))
        return has_room

    def _copy(self, source: int, target: int, rows: int) -> None:
        theirs, mine = (block * BLOCK_TOKENS for block in (source, target))
        for arena in self._arenas:
            arena[:, :, mine : mine + rows] = arena[:, :, theirs : theirs + rows]

    def _drop_kept_in(self, blocks: list[int]) -> None:
        """Forget the prompts that are kept in blocks which a session writes into."""
        if any(map(self._pool.is_pinned, blocks)):
            for key in [key for key, kept in self._kept.items() if set(kept.blocks) & set(blocks)]:
                self._drop(key)

    def _drop(self, key: int) -> None:
        """Forget a kept prompt and free the blocks that only it held."""
        self._clear(self._pool.unpin(self._kept.pop(key).blocks))

    def _clear(self, blocks: list[int]) -> None:
        """Zero free blocks: what a stranger's NaN left must not meet the next session."""
        for run in runs_of(blocks):
            for arena in self._arenas:
                arena[:, :, run.start * BLOCK_TOKENS : run.stop * BLOCK_TOKENS].zero_()

    def arena(self, layer: int) -> Arenas:
        """Keys and values of `layer`: [kv heads, tokens, head dim] each."""
        place = self._places[layer]
        return self._arenas[0][place], self._arenas[1][place]

    def flat(self, layer: int) -> tuple[Array, Array]:
        """Keys and values of `layer` as arrays, on a CPU: [kv heads, tokens, head dim] each."""
        found = self._flat.get(layer)
        if found is None:
            keys, values = (each.numpy() for each in self.arena(layer))
            found = self._flat[layer] = (keys, values)
        return found


def _room(blocks: int) -> int:
    """Tokens of an arena: of an odd number of blocks, so that heads lie no power of two apart.

    Else a processor's cache would keep the same rows of all of them in the same few places.
    """
    return (blocks | 1) * BLOCK_TOKENS


def _zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zeros, since masked rows still meet a product and 0 x NaN is NaN; on CPU they cost no block.

    numpy asks the kernel for zero blocks that are only backed when written; torch writes them.
    """
    count = int(np.prod(shape))
    if like.device.type != "cpu" or not count:
        return like.new_zeros(shape)
    flat = np.zeros(count * like.element_size(), dtype=np.uint8)
    return torch.from_numpy(flat).view(like.dtype).view(shape)
