"""StageRunner: the door of the engine. It loads one shard and runs steps of many sessions."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from node.engine.attention.decode_batch import TokenSpan
from node.engine.forward import Forward
from node.engine.grammar import GrammarCompiler
from node.engine.kv_cache.admission import Admission
from node.engine.kv_cache.prefix_cache import Prompt
from node.engine.model_loader.layer_reuse import ReusableLayers
from node.engine.model_loader.load_shard import (
    FOLDER_ONLY,
    LoadedParts,
    Loader,
    WeightSources,
    load_parts,
    weight_bytes_of,
)
from node.engine.parallel.allreduce import Reducer
from node.engine.parallel.vocab_parallel import candidates_of
from node.engine.random_stream import Walker, is_known
from node.engine.sampler import Sampler
from node.engine.shard_io import StageSpec, StepItem, StepResult
from swarm.checkpoint.architectures import context_of
from swarm.errors import EngineError, NoRoom, SwarmError
from swarm.wire.sampling_params import GREEDY, MOST_SPECULATED, Sampling

MOST_LOGIT_BYTES = 1 << 28  # of one forward pass; a step that wants more takes several


class StageRunner:
    """One loaded shard with its KV store; owned by one thread."""

    def __init__(self, spec: StageSpec, parts: LoadedParts, device: torch.device) -> None:
        self.spec = spec
        self.weight_bytes = weight_bytes_of(parts.stage)
        self.bytes_read, self.bytes_kept = parts.bytes_read, parts.bytes_kept
        self.is_first = spec.start == 0
        self.is_last = spec.end == int(parts.config.num_hidden_layers)
        self._config = parts.config
        self.context = context_of(parts.config)
        self._stage, self._forms = parts.stage, parts.forms
        self._store, self._manager = parts.store, parts.store.manager
        self.forward = Forward(spec, parts, device)
        self._admission = Admission(time.monotonic)
        self._samplers: dict[str, Sampler] = {}
        self._walker = Walker()
        if self._stage.has_head:
            is_known()  # compiled now, not in a step
        self.grammars = GrammarCompiler(spec.folder, int(parts.config.vocab_size))
        self._candidates: dict[str, int] = {}  # candidates that a session draws from

    @classmethod
    def load(
        cls,
        spec: StageSpec,
        *,
        budget_bytes: int,
        device: str = "cpu",
        reducer: Reducer | None = None,
        on_progress: Callable[[float], None] | None = None,
        sources: WeightSources = FOLDER_ONLY,
    ) -> "StageRunner":
        """Read the shard; weights and KV stay within `budget_bytes`.

        Layers of the shard before that stay as they are, are not read again. Raises BadModel for
        the checkpoint's faults, EngineError if the shard does not fit.
        """
        loader = Loader(budget_bytes, torch.device(device), reducer, on_progress, sources)
        return cls(spec, load_parts(spec, loader), loader.device)

    def release_layers(self) -> ReusableLayers:
        """The layers, for the next shard; this runner must not be used any more."""
        return ReusableLayers(self.spec, self._stage, self._forms)

    @property
    def free_tokens(self) -> int:
        """Tokens that new sessions may reserve, in total."""
        return self._manager.free_tokens

    def shrink(self, tokens: int) -> None:
        """Use KV for `tokens` only: equal stores take and refuse alike; before any session."""
        self._store.shrink(tokens)

    def open(
        self,
        session: str,
        *,
        capacity: int,
        history: Sequence[int] | npt.NDArray[np.integer] = (),
        generated: int = 0,
        sampling: Sampling | None = None,
        returning: bool = False,
    ) -> None:
        """Let a session of at most `capacity` tokens in; `history` is the ids so far.

        `generated` of them are ours. One that is `returning` had room here, and goes before others.
        Its ids are looked at only when it has room. Raises NoRoom, and EngineError for a session
        that is open already or beyond the context.
        """
        if not 0 < capacity <= self.context:
            raise EngineError(f"The context is {self.context} tokens, not {capacity}.")
        spare, is_awaited = 0, self._admission.is_awaited(session)
        if not self.spec.rank:  # other ranks take whom their leader has let in
            is_new = not (returning or is_awaited)
            spare = self._admission.spare(self._manager, is_new=is_new)
        self._manager.open(session, capacity, len(history), spare)
        self._admission.came_again(session)
        chosen = sampling or GREEDY
        self._candidates[session] = candidates_of(chosen)
        if self._stage.has_head and not self.spec.rank:
            try:
                self._samplers[session] = self._sampler_of(chosen, history, generated)
            except SwarmError:
                self.close(session)
                raise

    def _sampler_of(
        self, sampling: Sampling, history: Sequence[int] | npt.NDArray[np.integer], generated: int
    ) -> Sampler:
        sampling.check_ids(int(self._config.vocab_size))
        if sampling.seed is not None and 0 < generated <= len(history) and not sampling.is_greedy:
            self._walker.walk(sampling.seed, generated, int(self._config.vocab_size))
        grammar = self.grammars.state_of(sampling)
        return Sampler(sampling, history, generated, walker=self._walker, grammar=grammar)

    def share(self, session: str, prompt: Prompt) -> int:
        """Take over the rows of a new session's prompt that are here; returns how many."""
        return self._manager.share(session, prompt)

    def rollback(self, session: str, length: int) -> None:
        """Forget a session's rows, and drawn ids, from `length` on; raises EngineError."""
        self._manager.rollback(session, length)
        if session in self._samplers:
            self._samplers[session].rollback(length + 1)

    def close(self, session: str) -> None:
        """Free a session; one that is not open is fine."""
        self._manager.close(session)
        self._samplers.pop(session, None)
        self._candidates.pop(session, None)

    @torch.inference_mode()
    def step(self, items: Sequence[StepItem]) -> list[StepResult]:
        """Run the items as one batch; an item that cannot run carries its own error.

        Raises PeerLost if a rank is lost: no session's length has changed then.
        """
        errors = self._check(items)
        sound = [item for item in items if id(item) not in errors]
        results: dict[int, StepResult] = {}
        for some in self._portions(sound):
            results |= zip(map(id, some), self._run(some), strict=True)
        return [
            results.get(id(item)) or StepResult(item.session, error=errors[id(item)])
            for item in items
        ]

    def _portions(self, items: Sequence[StepItem]) -> Iterator[list[StepItem]]:
        """The items in one piece, or in as many as keep their logits within MOST_LOGIT_BYTES."""
        most = max(1, MOST_LOGIT_BYTES // (4 * int(self._config.vocab_size)))
        portion: list[StepItem] = []
        rows = 0
        for item in items:
            drawn = 1 + len(item.drafts) if item.sample and self._stage.has_head else 0
            if portion and rows + drawn > most:
                yield portion
                portion, rows = [], 0
            portion.append(item)
            rows += drawn
        if portion:
            yield portion

    def _check(self, items: Sequence[StepItem]) -> dict[int, EngineError]:
        errors: dict[int, EngineError] = {}
        seen: set[str] = set()
        for item in items:
            try:
                if item.session in seen:
                    raise EngineError(f"Session {item.session} is twice in one step.")
                self._check_item(item)
                seen.add(item.session)
                self._manager.grow(item.session, item.position, item.position + len(item.rows))
            except EngineError as error:
                errors[id(item)] = error
                if isinstance(error, NoRoom):
                    self._admission.sent_away(self._manager.table(item.session))
        return errors

    def _check_item(self, item: StepItem) -> None:
        table = self._manager.table(item.session)
        dims = 1 if self.is_first else 2
        rows = item.rows
        if rows.ndim != dims or not len(rows):
            raise EngineError(f"A step of shape {list(rows.shape)} does not fit this stage.")
        if self.is_first and not self._are_ids(rows):
            raise EngineError("A step has ids beyond the vocabulary.")
        if not self.is_first and rows.shape[1] != self._config.hidden_size:
            raise EngineError(f"Hidden rows have {self._config.hidden_size} values here.")
        if not 0 <= item.position <= table.length:
            raise EngineError(f"Position {item.position} leaves a gap after {table.length} rows.")
        if len(item.drafts) >= min(len(rows), MOST_SPECULATED + 1):
            raise EngineError("A step guesses more ids than it has rows for.")
        if item.position + len(rows) > table.capacity:
            raise EngineError(f"The session's {table.capacity} tokens are used up.")

    def _are_ids(self, rows: torch.Tensor) -> bool:
        if rows.dtype not in (torch.int64, torch.int32):
            return False
        return int(rows.min()) >= 0 and int(rows.max()) < int(self._config.vocab_size)

    def _run(self, items: Sequence[StepItem]) -> list[StepResult]:
        starts = itertools.accumulate((len(item.rows) for item in items), initial=0)
        spans = [
            TokenSpan(self._manager.table(item.session), item.position, len(item.rows), start)
            for item, start in zip(items, starts, strict=False)
        ]
        logit_rows = {
            item.session: range(span.step_rows.stop - 1 - len(item.drafts), span.step_rows.stop)
            for item, span in zip(items, spans, strict=True)
            if item.sample and self._stage.has_head
        }
        rows = torch.cat([item.rows for item in items])
        hidden, logits = self.forward.run(rows, spans, logit_rows, self._candidates)
        for span in spans:
            span.table.length = max(span.table.length, span.end)
        if self.is_last:
            return [
                self._sample(item, span, logits.get(item.session))
                for item, span in zip(items, spans, strict=True)
            ]
        return [
            StepResult(item.session, rows=hidden[span.step_rows])
            for item, span in zip(items, spans, strict=True)
        ]

    def _sample(self, item: StepItem, span: TokenSpan, logits: torch.Tensor | None) -> StepResult:
        if logits is None or self.spec.rank:
            return StepResult(item.session)
        sampler = self._samplers[item.session]
        first = span.end - len(item.drafts)
        try:
            ids, finish = sampler.verify(first, logits, item.drafts)
        except EngineError as error:
            return StepResult(item.session, error=error)
        end = first + len(ids)
        drafts = [] if finish else sampler.propose_drafts(end, span.table.capacity - end)
        return StepResult(
            item.session,
            ids=tuple(ids),
            drafts=tuple(drafts),
            finish=finish,
            logprobs=sampler.logprobs_of(logits, ids),
        )
