"""Decode steps recorded once and replayed: on a GPU the host is slower than the arithmetic.

A step is recorded when as many sessions have decoded together a few times. Everything that changes
between steps stands in buffers: rows, positions, blocks, and masks that follow from these.
What cannot be recorded (a model that asks the device for values) runs as before.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from node.engine.attention.backends import Backend
from node.engine.attention.decode_batch import DecodeBatch, TokenSpan, block_tables_of
from node.engine.attention.ragged_batch import RaggedBatch
from node.engine.kv_cache.arena import KVStore
from node.engine.kv_cache.block_pool import BLOCK_TOKENS
from node.engine.stage_model import StageModel

logger = logging.getLogger(__name__)

REPEATS = 4  # steps of as many sessions before theirs is recorded
LEAST_LIMIT = 256  # rows
MOST_PADDING = 4  # times the rows that are seen
GRAPHS_KEPT = 16
WARM_RUNS = 2

Outputs = tuple[torch.Tensor, ...]
Replay = Callable[[], None]
Record = Callable[[Callable[[], Outputs]], tuple[Replay, Outputs]]


def record_cuda(run: Callable[[], Outputs]) -> tuple[Replay, Outputs]:
    """Record `run` as a CUDA graph; raises RuntimeError if that is impossible."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    current = torch.cuda.current_stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARM_RUNS):
            run()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph.replay, outputs


class FixedBatch(RaggedBatch):
    """A decode step whose shapes do not change, for any sessions of at most `limit` rows."""

    def __init__(
        self, store: KVStore, spans: Sequence[TokenSpan], like: torch.Tensor, backend: Backend
    ) -> None:
        super().__init__(store, spans, like, backend)
        self.limit = limit_of(spans)
        (self._decodes,) = (part for part in self._parts if isinstance(part, DecodeBatch))
        self._decodes.fix_shapes(self.limit - 1)

    def set_inputs(self, positions: torch.Tensor, blocks: torch.Tensor) -> None:
        """Take positions [tokens] and blocks [tokens, limit's]; part of what is recorded."""
        self._decodes.set_inputs(positions, blocks)
        block = blocks.gather(1, (positions // BLOCK_TOKENS)[:, None])[:, 0]
        self._rows = block * BLOCK_TOKENS + positions % BLOCK_TOKENS


def limit_of(spans: Sequence[TokenSpan]) -> int:
    """Up to how many rows a recorded step reads: few numbers, since each is recorded."""
    return max(LEAST_LIMIT, 1 << (max(span.end for span in spans) - 1).bit_length())


def wastes(spans: Sequence[TokenSpan]) -> bool:
    """Whether most of what a recorded step would read is padding."""
    return len(spans) * limit_of(spans) > MOST_PADDING * sum(
        max(LEAST_LIMIT, span.end) for span in spans
    )


@dataclass(slots=True)
class Recorded:
    """One recorded step: its buffers, how to replay it, and what comes out."""

    rows: torch.Tensor  # ids [1, tokens] or hidden [1, tokens, hidden]
    positions: torch.Tensor  # [1, tokens]
    blocks: torch.Tensor  # [tokens, blocks of the limit]
    replay: Replay
    outputs: Outputs  # hidden [1, tokens, hidden]; with a head logits [1, tokens, vocab] too


class DecodeGraphs:
    """The recorded steps of one stage; owned by its compute thread."""

    def __init__(
        self,
        stage: StageModel,
        store: KVStore,
        like: torch.Tensor,
        record: Record = record_cuda,
    ) -> None:
        self._stage, self._store, self._like, self._record = stage, store, like, record
        self._recorded: dict[tuple[int, int], Recorded] = {}  # by sessions and limit
        self._latest = (0, 0)
        self._repeats = 0
        self.is_broken = False
        self.replays = 0

    def run(
        self, rows: torch.Tensor, spans: Sequence[TokenSpan], backend: Backend
    ) -> Outputs | None:
        """Replay a step of so many sessions, or return None if it has to be computed as usual."""
        if self.is_broken or backend.on_host or any(span.count != 1 for span in spans):
            return None
        if backend.pads and wastes(spans):
            return None
        key = len(spans), limit_of(spans)
        self._repeats = self._repeats + 1 if key == self._latest else 1
        self._latest = key
        found = self._recorded.pop(key, None)
        if found is None:
            if self._repeats < REPEATS:
                return None
            found = self._recorded_anew(rows, spans, backend)
            if found is None:
                return None
        self._recorded[key] = found  # the latest used last
        if len(self._recorded) > GRAPHS_KEPT:
            del self._recorded[next(iter(self._recorded))]
        found.rows.copy_(rows.unsqueeze(0))
        found.positions.copy_(torch.tensor([[span.position for span in spans]]))
        found.blocks.copy_(block_tables_of([span.table for span in spans], key[1] - 1))
        found.replay()
        self.replays += 1
        return tuple(each[0].clone() for each in found.outputs)

    def _recorded_anew(
        self, rows: torch.Tensor, spans: Sequence[TokenSpan], backend: Backend
    ) -> Recorded | None:
        device = self._like.device
        batch = FixedBatch(self._store, spans, self._like, backend)
        dtype = rows.dtype if rows.ndim == 1 else self._like.dtype
        buffer = rows.to(device, dtype, copy=True).unsqueeze(0)
        places = [[span.position for span in spans]]
        positions = torch.tensor(places, device=device)
        blocks = block_tables_of([span.table for span in spans], batch.limit - 1).to(device)

        def run() -> Outputs:
            batch.set_inputs(positions[0], blocks)
            return self._forward(batch, buffer, positions)

        try:
            replay, outputs = self._record(run)
        except RuntimeError as error:
            logger.warning("decode steps cannot be recorded here: %s", error)
            self.is_broken = True
            return None
        return Recorded(buffer, positions, blocks, replay, outputs)

    def _forward(self, batch: FixedBatch, rows: torch.Tensor, positions: torch.Tensor) -> Outputs:
        stage = self._stage
        stage.step.attend = batch.attend
        named: dict[str, object] = {"position_ids": positions, "use_cache": False}
        named["past_key_values"] = None
        if rows.ndim == 2:
            named["input_ids"] = rows
        else:
            named["inputs_embeds"] = stage.entering = rows
        if not stage.has_head:
            stage.base(**named)
            assert stage.leaving is not None
            return (stage.leaving,)
        logits = stage.model(**named, logits_to_keep=0).logits
        assert stage.leaving is not None
        return stage.leaving, logits
