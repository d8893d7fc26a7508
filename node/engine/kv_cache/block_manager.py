"""Our own KV store: rows of all sessions in pages of one arena, taken as the sessions grow.

A session is promised the pages of its prompt and of some answer; beyond them it grows as long as
there are free pages. Sessions whose prompts begin alike share the pages that these fill: whoever
writes into one of them leaves it to the others, so until its first step it is owed others instead.
"""

from collections.abc import Sequence

import numpy as np
import torch

from node.engine.kv_cache.block_pool import PAGE_TOKENS, Pages, pages_for, runs_of
from node.engine.kv_cache.block_table import Kept, Slot
from node.engine.kv_cache.prefix_cache import LEAST_KEPT, MOST_KEPT, Prompt, Rows, longest
from node.engine.shard_io import Array
from swarm.errors import EngineError, NoRoom

MOST_TOKENS = 1 << 20  # in one store
Arenas = tuple[torch.Tensor, torch.Tensor]  # keys and values: [kv heads, tokens, head dim]
HEADROOM_TOKENS = 256  # of its answer, that a session is promised besides its prompt


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
        self._pages = Pages(tokens // PAGE_TOKENS)
        self._slots: dict[str, Slot] = {}
        self._kept: dict[int, Kept] = {}  # the latest used last
        self._keepings = 0  # so far
        self._owed = 0  # pages, to all sessions together
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._arenas = tuple(
            _zeros((len(layers), kv_heads, _room(tokens // PAGE_TOKENS), head_dim), like)
            for head_dim in head_dims
        )
        self._flat: dict[int, tuple[Array, Array]] = {}

    @property
    def free_tokens(self) -> int:
        """Tokens that are neither used nor promised: kept prompts give way to sessions."""
        return (self._pages.available - self._owed) * PAGE_TOKENS

    @property
    def pages(self) -> int:
        """How many pages there are."""
        return self._pages.count

    @property
    def sessions(self) -> list[str]:
        """The open sessions."""
        return list(self._slots)

    def growth(self, most: int) -> int:
        """Pages that the sessions may ask for beyond their promises, at most so many each."""
        return sum(min(most, slot.remaining) for slot in self._slots.values())

    def shrink(self, tokens: int) -> None:
        """Use `tokens` only, before any session; raises EngineError while there are some."""
        if self._slots:
            raise EngineError("A KV store in use cannot shrink.", "Close its sessions first.")
        self._pages = Pages(min(tokens // PAGE_TOKENS, self._pages.count))
        self._kept.clear()
        self._flat.clear()
        like = self._arenas[0].new_empty(0)
        shapes = [
            (*each.shape[:2], _room(self._pages.count), each.shape[3]) for each in self._arenas
        ]
        self._arenas = ()  # first: a GPU has no room for both
        self._arenas = tuple(_zeros(shape, like) for shape in shapes)

    def open(self, session: str, capacity: int, known: int = 0, spare: int = 0) -> Slot:
        """Promise a new session `known` tokens and some more; raises NoRoom and EngineError.

        It may grow up to `capacity` tokens, if there are free pages then. Of those that are free
        now it has to leave `spare` to the sessions that are there.
        """
        if session in self._slots:
            raise EngineError(f"Session {session} is open already.", "Close it first.")
        if capacity < 1:
            raise EngineError(f"A session of {capacity} tokens is no session.")
        tokens = min(capacity, known + HEADROOM_TOKENS)
        slot = Slot(session, capacity, pages_for(tokens))
        is_possible = pages_for(capacity) <= self._pages.count
        if not is_possible or slot.promised + spare > self._pages.available - self._owed:
            free = f"{self.free_tokens} are free, {spare * PAGE_TOKENS} of them for others"
            raise NoRoom(f"No room for {tokens} tokens: {free}.")
        slot.wanted = self._pages.want(slot.promised)
        self._owed += slot.owed
        self._slots[session] = slot
        return slot

    def share(self, session: str, prompt: Prompt) -> int:
        """Give a new session the rows of its prompt that are here already; returns how many."""
        slot = self.slot(session)
        slot.prompt = prompt
        others = [each for each in self._slots.values() if each is not slot]
        offers = [(key, each.prompt, each.count, each.pages) for key, each in self._kept.items()]
        offers += [(-1, each.prompt, each.prefix, each.pages) for each in others]
        place, found = longest(prompt, (Rows(n, *each[1:3]) for n, each in enumerate(offers)))
        if not found:
            return 0
        key, _, _, pages = offers[place]
        if key in self._kept:
            self._kept[key] = self._kept.pop(key)
        whole, rest = divmod(min(found, slot.promised * PAGE_TOKENS), PAGE_TOKENS)
        shared = self._borrow(slot, pages[:whole])
        if shared < whole or not rest or not self._begin_page(slot, pages[whole], rest):
            rest = 0
        slot.length = shared * PAGE_TOKENS + rest
        return slot.length

    def grow(self, session: str, position: int, end: int) -> None:
        """Make rows [position, end) the session's own to write; raises NoRoom and changes nothing.

        In pages that other sessions use it forgets its rows from `position` on.
        """
        slot = self.slot(session)
        first = position // PAGE_TOKENS
        leaves = first < len(slot.pages) and self._pages.users(slot.pages[first]) > 1
        stays = first if leaves else len(slot.pages)
        more = max(0, pages_for(end) - stays)
        if more or slot.lent or slot.is_bare:
            self._check_room(slot, stays, more)
            source = slot.pages[first] if leaves and position % PAGE_TOKENS else None
            self._settle(slot, stays, position)
            for _ in range(more):
                self._use(slot, [self._take(slot)])
            if source is not None:  # another session holds it still
                self._copy(source, slot.pages[first], position % PAGE_TOKENS)
        self._drop_kept_in(slot.pages[first : pages_for(end)])

    def _check_room(self, slot: Slot, stays: int, more: int) -> None:
        """Raise NoRoom unless a session can leave all pages but the first, and take others."""
        freed = sum(self._pages.users(page) == 1 for page in slot.pages[stays:])
        promised = max(0, slot.promised - stays)
        owed = self._owed - slot.owed + promised
        left = self._pages.available + freed - owed - max(0, more - promised)
        if left < 0:
            wanted = f"{more * PAGE_TOKENS} tokens are wanted"
            raise NoRoom(f"No room to grow: {wanted}, {self.free_tokens} are free.")

    def _settle(self, slot: Slot, stays: int, position: int) -> None:
        """Leave all pages but the first to others, and need no more copies."""
        self._owed -= slot.owed
        left = slot.pages[stays:]
        slot.lent, slot.is_bare = 0, False
        if left:
            slot.lie_in(slot.pages[:stays])
            slot.length = position
        self._owed += slot.owed
        self._clear(self._pages.leave(left))

    def slot(self, session: str) -> Slot:
        """The place of an open session; raises EngineError."""
        if session not in self._slots:
            raise EngineError(f"Session {session} is not open here.", "Open it again.")
        return self._slots[session]

    def rollback(self, session: str, length: int) -> None:
        """Forget the rows from `length` on; raises EngineError."""
        slot = self.slot(session)
        if not 0 <= length <= slot.length:
            raise EngineError(f"Session {session} cannot go back to {length} of {slot.length}.")
        slot.length = length

    def close(self, session: str) -> None:
        """Free a session; one that is not open is fine."""
        slot = self._slots.pop(session, None)
        if slot is None:
            return
        self._owed -= slot.owed
        if slot.prefix >= LEAST_KEPT and not self._is_kept_elsewhere(slot):
            self._keepings += 1
            kept = Kept(slot.prompt, slot.prefix, slot.pages[: pages_for(slot.prefix)])
            self._kept[self._keepings] = kept
            self._pages.keep(kept.pages)
        self._pages.give_up(slot.wanted)
        self._clear(self._pages.leave(slot.pages))
        while len(self._kept) > MOST_KEPT:
            self._drop(next(iter(self._kept)))

    def _is_kept_elsewhere(self, slot: Slot) -> bool:
        """Whether another kept prompt begins with this one; those that begin this one go."""
        for key, other in list(self._kept.items()):
            shared = slot.prompt.shared_with(other.prompt)
            if min(shared, other.count) >= slot.prefix:
                self._kept[key] = self._kept.pop(key)
                return True
            if shared >= other.count:
                self._drop(key)
        return False

    def _borrow(self, slot: Slot, pages: list[int]) -> int:
        """Hold pages of others, with room for copies until the first step; returns how many.

        Without that room only pages that nobody else uses then, which it may write into itself.
        """
        bare = {page for each in self._slots.values() if each.is_bare for page in each.pages}
        room = self._pages.available - self._owed
        for count, page in enumerate(pages):
            if page in bare:
                return count
            is_used = self._pages.users(page) > 0
            self._owed -= slot.owed
            slot.lent += is_used or room > 0
            slot.is_bare |= not is_used and room <= 0
            room -= not is_used
            self._owed += slot.owed
            self._use(slot, [page])
        return len(pages)

    def _use(self, slot: Slot, pages: list[int]) -> None:
        """Append pages to a session's own."""
        self._pages.use(pages)
        self._owed -= slot.owed
        slot.lie_in([*slot.pages, *pages])
        self._owed += slot.owed

    def _take(self, slot: Slot) -> int:
        """A free page for a session, if need be in place of kept prompts; there must be one."""
        wanted = slot.wanted[len(slot.pages) :]
        page = self._pages.find(wanted)
        while page is None:
            self._drop(next(iter(self._kept)))
            page = self._pages.find(wanted)
        return page

    def _begin_page(self, slot: Slot, source: int, rows: int) -> bool:
        """Append a copy of some rows of another session's page, unless there is no room for one."""
        self._pages.use([source])  # so that it stays until it is copied
        has_room = self._pages.available - self._owed + bool(slot.untaken) > 0
        if has_room:
            page = self._take(slot)
            self._copy(source, page, rows)
            self._use(slot, [page])
        self._clear(self._pages.leave([source]))
        return has_room

    def _copy(self, source: int, target: int, rows: int) -> None:
        theirs, mine = (page * PAGE_TOKENS for page in (source, target))
        for arena in self._arenas:
            arena[:, :, mine : mine + rows] = arena[:, :, theirs : theirs + rows]

    def _drop_kept_in(self, pages: list[int]) -> None:
        """Forget the prompts that are kept in pages which a session writes into."""
        if any(map(self._pages.is_kept, pages)):
            for key in [key for key, kept in self._kept.items() if set(kept.pages) & set(pages)]:
                self._drop(key)

    def _drop(self, key: int) -> None:
        """Forget a kept prompt and free the pages that only it held."""
        self._clear(self._pages.forget(self._kept.pop(key).pages))

    def _clear(self, pages: list[int]) -> None:
        """Zero free pages: what a stranger's NaN left must not meet the next session."""
        for run in runs_of(pages):
            for arena in self._arenas:
                arena[:, :, run.start * PAGE_TOKENS : run.stop * PAGE_TOKENS].zero_()

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


def _room(pages: int) -> int:
    """Tokens of an arena: of an odd number of pages, so that heads lie no power of two apart.

    Else a processor's cache would keep the same rows of all of them in the same few places.
    """
    return (pages | 1) * PAGE_TOKENS


def _zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zeros, since masked rows still meet a product and 0 x NaN is NaN; on CPU they cost no page.

    numpy asks the kernel for zero pages that are only backed when written; torch writes them.
    """
    count = int(np.prod(shape))
    if like.device.type != "cpu" or not count:
        return like.new_zeros(shape)
    flat = np.zeros(count * like.element_size(), dtype=np.uint8)
    return torch.from_numpy(flat).view(like.dtype).view(shape)
