"""Grammars at the last stage: compiled once for many sessions; where a session stands in its own.

llguidance compiles and walks them (Rust). Both are bounded by its fuel (`swarm/wire/grammars.py`);
compiling takes milliseconds, in a thread of the worker that is not the one that computes, and the
compute thread finds what is compiled here.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from swarm.errors import EngineError
from swarm.wire.grammars import Grammar, form_of, limits, reason_of
from swarm.wire.sampling_params import Sampling

TOKENIZER = "tokenizer.json"
SECONDS_EACH, SECONDS_AT_ONCE = 0.01, 1.0  # of masks: everybody's step waits for them
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
MASKED = np.where(_BITS, np.float32(0), np.float32(-np.inf))  # [256, 8]: by a byte of a mask
MOST_COMPILED = 64  # kept; the least recently used goes first

logger = logging.getLogger(__name__)


class GrammarState:
    """Where the answer of one session stands in its grammar."""

    def __init__(
        self,
        matcher: LLMatcher,
        ends: Sequence[int],
        stop_ids: Sequence[int],
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._matcher = matcher
        self._clock = clock
        self._left_seconds = SECONDS_AT_ONCE
        self._stop_ids = np.array(stop_ids, np.int64)
        self._other_ends = np.array(sorted(set(ends) - set(stop_ids)), np.int64)
        self._has_stopped = False  # the last id ended the session; the grammar has not seen it

    @property
    def is_over(self) -> bool:
        """Whether nothing may follow but the end."""
        return self._matcher.is_stopped()

    def apply(self, scores: npt.NDArray[np.float32]) -> None:
        """Leave of the scores [vocab] only those of ids that may follow; raises EngineError.

        An id that ends the session may follow where the grammar accepts what is there.
        """
        bits = np.frombuffer(self._bits(), np.uint8)
        self._check()
        of_ends = scores[self._stop_ids]
        scores += np.take(MASKED, bits, axis=0).reshape(-1)[: len(scores)]
        scores[self._other_ends] = -np.inf
        if self._matcher.is_accepting():
            scores[self._stop_ids] = of_ends
        if scores.max() == -np.inf:
            raise EngineError("Nothing that the model can say fits the grammar here.")

    def _bits(self) -> bytes:
        """A bit for each id that may follow; raises EngineError from those who take too long."""
        start = self._clock()
        bits = self._matcher.compute_bitmask()
        self._left_seconds += SECONDS_EACH - (self._clock() - start)
        self._left_seconds = min(self._left_seconds, SECONDS_AT_ONCE)
        if self._left_seconds < 0:
            raise EngineError("The grammar takes too long for each token.", "Simplify it.")
        return bits

    def note(self, ids: Sequence[int]) -> None:
        """Ids were added to the answer; raises EngineError if they do not fit."""
        self._has_stopped = bool(len(ids)) and ids[-1] in self._stop_ids
        inner = ids[:-1] if self._has_stopped else ids
        self._matcher.consume_tokens(list(inner))
        self._check()

    def forget(self, count: int) -> None:
        """The last ids of the answer were taken back."""
        self._matcher.rollback(count - (self._has_stopped and count > 0))
        self._has_stopped = self._has_stopped and not count
        self._check()

    def drafts(self, guessed: list[int]) -> list[int]:
        """Those of the guessed ids that may follow: what the grammar forces, if it forces any."""
        if not guessed:
            return guessed
        forced = self._matcher.compute_ff_tokens()[: len(guessed)]
        return forced or guessed[: self._matcher.validate_tokens(guessed)]

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(f"The grammar fails: {reason_of(self._matcher.get_error())}.")


class GrammarCompiler:
    """The grammars of one model; what is compiled may be taken from any thread, at once."""

    def __init__(self, folder: Path, vocab: int) -> None:
        self._path, self._vocab = folder / TOKENIZER, vocab
        self._compiled: OrderedDict[Grammar, LLMatcher | EngineError] = OrderedDict()
        self._lock = threading.Lock()  # of `_compiled`; never held while something is compiled
        self._reading = threading.Lock()
        self._tokenizer: LLTokenizer | None = None

    def compile(self, grammar: Grammar) -> LLMatcher:
        """The grammar before the first id, for nobody to change; raises EngineError."""
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
        if found is None:
            found = self._compiled_now(grammar)
            with self._lock:
                self._compiled[grammar] = found
                while len(self._compiled) > MOST_COMPILED:
                    self._compiled.popitem(last=False)
        if isinstance(found, EngineError):
            raise EngineError(found.cause, found.next_step)
        return found

    def state_of(self, sampling: Sampling) -> GrammarState | None:
        """Where a session with these options begins; None without a grammar; raises EngineError."""
        if not sampling.grammar:
            return None
        matcher = self.compile(sampling.grammar).deep_copy()
        ends = self._known(self._read_tokenizer().eos_tokens)
        return GrammarState(matcher, ends, self._known(sampling.stop_ids))

    def _known(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token < self._vocab]

    def _compiled_now(self, grammar: Grammar) -> LLMatcher | EngineError:
        try:
            tokenizer, form = self._read_tokenizer(), form_of(grammar)
        except ValueError as error:
            return _unusable(str(error))
        except EngineError as error:
            return error
        matcher = LLMatcher(tokenizer, form, log_level=0, limits=limits())
        return _unusable(matcher.get_error()) if matcher.is_error() else matcher

    def _read_tokenizer(self) -> LLTokenizer:
        """Read for the first grammar: 128,256 ids take 1 s and 90 MB, and most stages need none."""
        with self._reading:
            if self._tokenizer is None:
                self._tokenizer = _tokenizer_of(self._path, self._vocab)
        return self._tokenizer


def _unusable(why: str) -> EngineError:
    return EngineError(f"The grammar cannot be used: {reason_of(why)}.", "Simplify or mend it.")


def _tokenizer_of(path: Path, vocab: int) -> LLTokenizer:
    if not path.is_file():
        cause = f"This stage has no {TOKENIZER} of the model, which grammars need."
        raise EngineError(cause, "Ask without a grammar.")
    try:
        return LLTokenizer(str(path), n_vocab=vocab)
    except ValueError as error:
        cause = f"The model's {TOKENIZER} cannot be read for grammars: {reason_of(str(error))}."
        raise EngineError(cause, "Ask without a grammar.") from error
