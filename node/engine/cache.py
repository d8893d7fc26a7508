"""Our own KV store: rows of all sessions in pages of one arena, taken as the sessions grow.

A session is promised the pages of its prompt and of some answer; beyond them it grows as long as
there are free pages. Sessions whose prompts begin alike share the pages that these fill.
"""

from collections.abc import Sequence

import numpy as np
import torch

from node.engine.kernels import Array
from node.engine.pages import PAGE_TOKENS, Pages, pages_for, runs_of
from node.engine.prefixes import LEAST_KEPT, MOST_KEPT, Prompt, Rows, longest
from node.engine.slots import Kept, Slot
from swarm.errors import EngineError, NoRoom

MOST_TOKENS = 1 << 20  # in one store
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
            _zeros((len(layers), kv_heads, _unlike(_whole(tokens)), head_dim), like)
            for head_dim in head_dims
        )
        self._flat: dict[int, tuple[Array, Array]] = {}

    @property
    def free_tokens(self) -> int:
        """Tokens that are neither used nor promised: kept prompts give way to sessions."""
        return (self._pages.available - self._owed) * PAGE_TOKENS

    @property
    def sessions(self) -> list[str]:
        """The open sessions."""
        return list(self._slots)

    def shrink(self, tokens: int) -> None:
        """Use `tokens` only, before any session; raises EngineError while there are some."""
        if self._slots:
            raise EngineError("A KV store in use cannot shrink.", "Close its sessions first.")
        self._pages = Pages(min(tokens // PAGE_TOKENS, self._pages.count))
        tokens = _unlike(self._pages.count * PAGE_TOKENS)
        self._arenas = tuple(
            _zeros((*each.shape[:2], tokens, each.shape[3]), each) for each in self._arenas
        )
        self._kept.clear()
        self._flat.clear()

    def open(self, session: str, capacity: int, known: int = 0) -> Slot:
        """Promise a new session `known` tokens and some more; raises NoRoom and EngineError.

        It may grow up to `capacity` tokens, if there are free pages then. So that it can begin to,
        every session that may outgrow its promise has one page left when another comes.
        """
        if session in self._slots:
            raise EngineError(f"Session {session} is open already.", "Close it first.")
        if capacity < 1:
            raise EngineError(f"A session of {capacity} tokens is no session.")
        promised = min(capacity, known + HEADROOM_TOKENS)
        slot = Slot(session, capacity, pages_for(promised))
        growing = sum(_may_outgrow(each) for each in (slot, *self._slots.values()))
        is_possible = pages_for(capacity) <= self._pages.count
        if not is_possible or slot.promised + growing > self._pages.available - self._owed:
            free = f"{self.free_tokens} are free, and {growing} sessions grow"
            raise NoRoom(f"No room for {promised} tokens: {free}.")
        slot.wanted = self._pages.want(slot.promised)
        self._owed += slot.promised
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
        count = min(found, slot.promised * PAGE_TOKENS)
        if not count:
            return 0
        key, _, _, pages = offers[place]
        if key in self._kept:
            self._kept[key] = self._kept.pop(key)
        whole, rest = divmod(count, PAGE_TOKENS)
        self._use(slot, pages[:whole])
        if rest and not self._begin_page(slot, pages[whole]):
            count -= rest
        slot.length = count
        return count

    def grow(self, session: str, position: int, end: int) -> None:
        """Make rows [position, end) the session's own to write; raises NoRoom and changes nothing.

        Pages that others hold too are copied first.
        """
        slot = self.slot(session)
        touched = slot.pages[position // PAGE_TOKENS : pages_for(end)]
        shared = [page for page in touched if self._pages.is_shared(page)]
        more = max(0, pages_for(end) - len(slot.pages))
        if not shared and not more:
            return
        if max(0, more - slot.owed) + len(shared) > self._pages.available - self._owed:
            raise NoRoom(f"No room for another {PAGE_TOKENS} tokens, {self.free_tokens} are free.")
        for page in shared:
            self._replace(slot, page)
        for _ in range(more):
            self._use(slot, [self._take(slot)])

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

    def _begin_page(self, slot: Slot, source: int) -> bool:
        """Append a copy of another session's page, unless there is no room for one."""
        self._pages.use([source])  # so that it stays until it is copied
        has_room = self._pages.available - self._owed + bool(slot.owed) > 0
        if has_room:
            page = self._take(slot)
            self._copy(source, page)
            self._use(slot, [page])
        self._clear(self._pages.leave([source]))
        return has_room

    def _replace(self, slot: Slot, page: int) -> None:
        """Give a session its own copy of a page that others hold too."""
        own = self._take(slot)
        self._copy(page, own)
        self._pages.use([own])
        slot.lie_in([own if each == page else each for each in slot.pages])
        self._clear(self._pages.leave([page]))

    def _copy(self, source: int, target: int) -> None:
        for arena in self._arenas:
            arena[:, :, _rows_of(target)] = arena[:, :, _rows_of(source)]

    def _drop(self, key: int) -> None:
        """Forget a kept prompt and free the pages that only it held."""
        self._clear(self._pages.forget(self._kept.pop(key).pages))

    def _clear(self, pages: list[int]) -> None:
        """Zero free pages: what a stranger's NaN left must not meet the next session."""
        for run in runs_of(pages):
            for arena in self._arenas:
                arena[:, :, _rows_of(run.start, len(run))].zero_()

    def arena(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
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


def _rows_of(page: int, pages: int = 1) -> slice:
    """The rows of neighbouring pages in the arena."""
    return slice(page * PAGE_TOKENS, (page + pages) * PAGE_TOKENS)


def _whole(tokens: int) -> int:
    """The tokens of whole pages."""
    return tokens - tokens % PAGE_TOKENS


def _unlike(tokens: int) -> int:
    """As many tokens, or a page more, so that heads do not lie a power of two apart.

    Then a processor's cache would keep the same rows of all of them in the same few places.
    """
    return (tokens // PAGE_TOKENS | 1) * PAGE_TOKENS


def _may_outgrow(slot: Slot) -> bool:
    return pages_for(slot.capacity) > max(slot.promised, len(slot.pages))


def _zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zeros, since masked rows still meet a product and 0 x NaN is NaN; on CPU they cost no page.

    numpy asks the kernel for zero pages that are only backed when written; torch writes them.
    """
    count = int(np.prod(shape))
    if like.device.type != "cpu" or not count:
        return like.new_zeros(shape)
    flat = np.zeros(count * like.element_size(), dtype=np.uint8)
    return torch.from_numpy(flat).view(like.dtype).view(shape)
