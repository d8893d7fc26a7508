"""RandomStream: a session's random numbers, and how a replay gets far into them at once.

A seeded session draws what `generate` draws after `torch.manual_seed`: torch fills a number for
every id of the vocabulary and token. A replay begins behind thousands of tokens; to draw them again
takes 5 ms a token. But these numbers come from a Mersenne Twister (MT19937), two words each, and to
walk its state past words that nobody reads costs a hundredth of that - in a thread of its own.
"""

import functools
import queue
import threading
from collections import OrderedDict
from typing import Protocol

import numpy as np
import torch

from node.engine.kernels.kernel_cache import kernel
from node.engine.shard_io import Array
from node.engine.thread_priority import lower_own_priority
from swarm.errors import NoRoom

STATE_WORDS, MIDDLE = 624, 397  # of MT19937
WORDS_PER_ID = 2  # torch draws a double for each id of the vocabulary
# where torch's `Generator.get_state` keeps words left, next word, and the words themselves
LEFT, NEXT, WORDS = slice(8, 12), slice(16, 24), slice(24, 24 + 8 * STATE_WORDS)
QUICK_TWISTS = 1 << 12  # walked at once: about 2 ms
SLICE_TWISTS = 1 << 14  # walked before another session has its turn
MOST_WALKS = 256  # kept; the oldest goes first


class Walk(Protocol):
    """A generator's state on its way from its seed to a later draw."""

    is_done: bool

    def go_on(self) -> None:
        """Come nearer by a slice."""

    def state(self) -> torch.Tensor:
        """The state, once it is done: as `Generator.set_state` takes it."""


class Twists:
    """Walks the words of a seed's state past so many draws."""

    def __init__(self, seed: int, draws: int, vocab: int) -> None:
        self._raw = _seeded(seed).get_state().numpy()
        self._words = self._raw[WORDS].view(np.uint64).astype(np.uint32)
        words = draws * vocab * WORDS_PER_ID
        self._left = -(-words // STATE_WORDS)
        self._next = words - STATE_WORDS * (self._left - 1)
        self.is_done = False

    @property
    def is_short(self) -> bool:
        """Whether it takes no longer than a step may wait."""
        return self._left <= QUICK_TWISTS

    def go_on(self) -> None:
        """Come nearer by a slice."""
        now = min(self._left, SLICE_TWISTS)
        _twist(self._words, now)
        self._left -= now
        self.is_done = not self._left

    def state(self) -> torch.Tensor:
        """The state, once it is done."""
        self._raw[WORDS] = self._words.astype(np.uint64).view(np.uint8)
        self._raw[NEXT] = np.array([self._next], np.uint64).view(np.uint8)
        self._raw[LEFT] = np.array([STATE_WORDS + 1 - self._next], np.int32).view(np.uint8)
        return torch.from_numpy(self._raw)


class Redraws:
    """Draws again, for a torch whose generator works otherwise."""

    is_short = False

    def __init__(self, seed: int, draws: int, vocab: int) -> None:
        self._generator = _seeded(seed)
        self._even = torch.full((1, vocab), 1.0 / vocab)
        self._left = draws
        self.is_done = False

    def go_on(self) -> None:
        """Draw one more."""
        torch.multinomial(self._even, 1, generator=self._generator)
        self._left -= 1
        self.is_done = not self._left

    def state(self) -> torch.Tensor:
        """The state, once it is done."""
        return self._generator.get_state()


class Walker:
    """Walks states ahead in a thread of least priority, a slice of each in turn."""

    def __init__(self) -> None:
        self._walks: OrderedDict[tuple[int, int, int], Walk] = OrderedDict()
        self._queue: queue.SimpleQueue[tuple[tuple[int, int, int], Walk]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def walk(self, seed: int, draws: int, vocab: int) -> Walk:
        """The walk to a draw, begun if it is not under way; a short one is done at once."""
        key = seed, draws, vocab
        found = self._walks.get(key)
        if found is None:
            made = Twists(seed, draws, vocab) if is_known() else Redraws(seed, draws, vocab)
            if made.is_short:
                made.go_on()
                return made
            found = self._walks[key] = made
            self._queue.put((key, made))
            self._start()
        self._walks.move_to_end(key)
        while len(self._walks) > MOST_WALKS:
            self._walks.popitem(last=False)
        return found

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="random streams")
            self._thread.start()

    def _run(self) -> None:
        lower_own_priority()
        while True:
            key, walk = self._queue.get()
            walk.go_on()
            if not walk.is_done and self._walks.get(key) is walk:  # nobody else counts on it
                self._queue.put((key, walk))


class RandomStream:
    """The random numbers of one session: of its seed from the first token on, or of none."""

    def __init__(self, walker: Walker, seed: int | None, known: int) -> None:
        self._walker = walker
        self._generator = torch.Generator()
        self._seed = self._generator.seed() if seed is None else seed
        self._origin = 0 if seed is not None else known  # nobody knows what was drawn before
        self._at = -1  # tokens that have been drawn; -1: not yet begun

    def draw(self, place: int, weights: torch.Tensor) -> int:
        """Draw the token at a place from weights [1, vocab]; raises NoRoom if that takes longer."""
        if self._at != place:
            self._go_to(place - self._origin, weights.shape[-1])
        self._at = place + 1
        return int(torch.multinomial(weights, 1, generator=self._generator))

    def _go_to(self, draws: int, vocab: int) -> None:
        if not draws:
            self._generator.manual_seed(self._seed)
            return
        walk = self._walker.walk(self._seed, draws, vocab)
        if not walk.is_done:
            raise NoRoom("The session's random numbers are still being caught up with.")
        self._generator.set_state(walk.state())


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@functools.cache
def is_known() -> bool:
    """Whether this torch's generator is the one whose words we walk past."""
    drawn, even = _seeded(5), torch.full((1, 1000), 0.001)
    for _ in range(3):
        torch.multinomial(even, 1, generator=drawn)
    try:
        walk = Twists(5, 3, 1000)
        walk.go_on()
        return torch.equal(walk.state(), drawn.get_state())
    except (ValueError, RuntimeError):  # a state of another size
        return False


@kernel(nogil=True)
def _twist(words: Array, times: int) -> None:
    """Replace all words by the next ones, in place."""
    upper, lower = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
    matrix, one = np.uint32(0x9908B0DF), np.uint32(1)
    for _ in range(times):
        for at in range(STATE_WORDS):
            after = words[at + 1] if at + 1 < STATE_WORDS else words[0]
            far = at + MIDDLE if at + MIDDLE < STATE_WORDS else at + MIDDLE - STATE_WORDS
            mixed = (words[at] & upper) | (after & lower)
            words[at] = words[far] ^ (mixed >> one) ^ (matrix * (after & one))
