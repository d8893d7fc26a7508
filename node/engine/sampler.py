"""Chooses the next token of one session: penalties as vLLM's, then transformers' own processors.

The order: the grammar, biases, penalties (`score_changes.py`), temperature, top k, top p, min p.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from node.engine.grammar import GrammarState
from node.engine.prompt_lookup import MOST_DRAFTS, NgramProposer
from node.engine.random_stream import RandomStream, Walker
from node.engine.score_changes import ScoreChanges
from swarm.errors import EngineError
from swarm.wire.sampling_params import Sampling
from swarm.wire.token_logprobs import LEAST_LOGPROB, logprobs_to_bytes

NO_IDS = cast("torch.LongTensor", torch.empty((1, 0), dtype=torch.int64))  # none of them looks


class Sampler:
    """The ids of one session so far, its random stream, and its rules for ending."""

    def __init__(
        self,
        sampling: Sampling,
        history: Sequence[int] | npt.NDArray[np.integer],
        generated: int,
        *,
        walker: Walker | None = None,
        grammar: GrammarState | None = None,
    ) -> None:
        if not 0 <= generated <= len(history):
            raise EngineError(f"{generated} of {len(history)} ids cannot have been generated.")
        self._sampling = sampling
        self._ids = np.array(history, dtype=np.int64)  # [room]: the first `_known` are set
        self._known = len(history)
        self._largest = int(self._ids.max(initial=0))
        if self._ids.min(initial=0) < 0:
            raise EngineError("A history has negative ids.")
        self._prompt = len(history) - generated
        self._processors = processors_of(sampling)
        self._changes = ScoreChanges.of(sampling, self._ids, self._prompt)
        self._grammar = grammar
        if grammar:
            grammar.note(self._ids[self._prompt :].tolist())
        self._random = RandomStream(walker or Walker(), sampling.seed, generated)
        self._proposer = NgramProposer()

    @property
    def ids(self) -> list[int]:
        """Prompt and generated ids."""
        return [int(each) for each in self._ids[: self._known]]

    def next(self, position: int, logits: torch.Tensor) -> tuple[int, str]:
        """Return the id at `position` and how it ends the session; repeats a known one.

        `logits` [vocab] are those of the row before; raises EngineError if ids are missing.
        """
        if not self._prompt <= position <= self._known:
            raise EngineError(f"The ids before position {position} are not known.", "Open again.")
        if position == self._known:
            self._append(self._draw(logits))
        return int(self._ids[position]), self._finish(position)

    def verify(
        self, position: int, logits: torch.Tensor, drafts: Sequence[int]
    ) -> tuple[list[int], str]:
        """Draw ids from `position` on, one after the other, while they equal their drafts.

        `logits` [1 + drafts, vocab]: of the row before `position`, then of the rows of drafts.
        """
        ids: list[int] = []
        for place, row in enumerate(logits):
            token, finish = self.next(position + place, row)
            ids.append(token)
            if finish or [token] != list(drafts[place : place + 1]):
                return ids, finish
        return ids, ""

    def logprobs_of(self, logits: torch.Tensor, ids: Sequence[int]) -> bytes:
        """What the model alone thought of `ids`, each drawn from its row of `logits` [rows, vocab].

        As they travel; nothing for a session that does not want to know.
        """
        top = self._sampling.top_of(logits.shape[-1])
        if top is None:
            return b""
        rows = logits[: len(ids)].float()
        own = rows.gather(-1, torch.tensor(ids, device=rows.device)[:, None])
        values, likeliest = rows.topk(top)
        told = torch.cat([own, values], -1) - rows.logsumexp(-1, keepdim=True)
        told = told.clamp(min=LEAST_LOGPROB, max=0.0)
        return logprobs_to_bytes(told.cpu().numpy(), likeliest.cpu().numpy())

    def propose_drafts(self, position: int, room: int) -> list[int]:
        """Return drafts of the ids from `position` on, at most `room`, if that is where we are."""
        speculate = self._sampling.speculate
        wanted = MOST_DRAFTS if speculate is None else speculate
        left = self._prompt + self._sampling.max_tokens - position - 1  # the last one is drawn
        most = min(wanted, left, room)
        if most < 1 or position != self._known:
            return []
        found = self._proposer.propose(self._ids[: self._known], most)
        return self._grammar.drafts(found) if self._grammar else found

    def rollback(self, length: int) -> None:
        """Forget the ids from `length` on; drawn again, they come out the same."""
        known = min(self._known, max(length, self._prompt))
        if self._changes:
            self._changes.forget(self._ids[known : self._known])
        if self._grammar:
            self._grammar.forget(self._known - known)
        self._known = known

    def _append(self, token: int) -> None:
        if self._known == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(len(self._ids) + 64, np.int64)])
        self._ids[self._known] = token
        self._known += 1
        if self._changes:
            self._changes.note(token)
        if self._grammar:
            self._grammar.note([token])

    def _draw(self, logits: torch.Tensor) -> int:
        scores = logits.to(device="cpu", dtype=torch.float32, copy=True).unsqueeze(0)  # [1, vocab]
        if self._grammar:
            self._grammar.apply(scores[0].numpy())
        if self._changes:
            self._check_ids(scores.shape[-1])
            self._changes.apply(scores[0].numpy())
        if self._processors:
            scores = self._processors(NO_IDS, scores)
        if self._sampling.is_greedy:
            best = int(scores.argmax(-1))
            _check_finite(scores[0, best])
            return best
        weights = scores.softmax(-1)
        _check_finite(weights.sum())
        return self._random.draw(self._known - self._prompt, weights)

    def _check_ids(self, vocab: int) -> None:
        if self._largest >= vocab:
            raise EngineError("A history has ids beyond the vocabulary.")

    def _finish(self, position: int) -> str:
        if self._ids[position] in self._sampling.stop_ids:
            return "stop"
        if self._grammar and position == self._known - 1 and self._grammar.is_over:
            return "stop"
        is_last = position + 1 - self._prompt >= self._sampling.max_tokens
        return "length" if is_last else ""


def _check_finite(value: torch.Tensor) -> None:
    """Fail this session alone: a stranger's rows or options must not break the whole step."""
    if not bool(value.isfinite()):
        raise EngineError("The scores of a session are not finite.")


def processors_of(sampling: Sampling) -> LogitsProcessorList:
    """The processors of `generate` behind its penalties for the same options, in its order."""
    chosen = LogitsProcessorList()
    if sampling.is_greedy:
        return chosen
    if sampling.temperature != 1:
        chosen.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k > 0:
        chosen.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chosen.append(TopPLogitsWarper(float(sampling.top_p)))
    if sampling.min_p > 0:
        chosen.append(MinPLogitsWarper(float(sampling.min_p)))
    return chosen
