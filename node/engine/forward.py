"""Forward: how the rows of one step go through a stage's layers, by the quickest way they allow."""

from collections.abc import Callable, Mapping, Sequence

import torch

from node.engine.attention.backends import backend_of, start_afresh
from node.engine.attention.decode_batch import TokenSpan
from node.engine.attention.interface import Options, attend_small_batch
from node.engine.attention.ragged_batch import RaggedBatch
from node.engine.cuda_graphs import DecodeGraphs
from node.engine.fused_forward import FusedStage
from node.engine.kernels.small_batch import (
    MOST_ROWS,
    MOST_VALUES,
    SmallBatch,
    has_kernels,
    index_rows,
)
from node.engine.model_loader.load_shard import LoadedParts
from node.engine.shard_io import StageSpec

LogitRows = Mapping[str, range]  # rows whose logits are wanted, by session
Logits = dict[str, torch.Tensor]  # [rows, vocab] by session


class Forward:
    """The layers of one loaded shard; owned by its compute thread."""

    def __init__(self, spec: StageSpec, parts: LoadedParts, device: torch.device) -> None:
        self._stage, self._store = parts.stage, parts.store
        self._vocabulary = parts.vocabulary
        self._device = device
        self._is_first = spec.start == 0
        self._like = torch.empty(0, dtype=spec.torch_dtype, device=device)
        self._has_kernels = has_kernels(device, spec.torch_dtype)
        start_afresh(device)
        self.backend = backend_of(device, spec.torch_dtype)
        self.fused = FusedStage.of(parts.stage) if self._has_kernels else None
        self.graphs: DecodeGraphs | None = None
        if device.type == "cuda" and spec.ranks == 1:  # sums between ranks cannot be recorded
            self.graphs = DecodeGraphs(parts.stage, parts.store, self._like)

    def run(
        self,
        rows: torch.Tensor,
        spans: Sequence[TokenSpan],
        logit_rows: LogitRows,
        candidates: Mapping[str, int],
    ) -> tuple[torch.Tensor, Logits]:
        """Run ids [tokens] or hidden rows [tokens, hidden] of several sessions.

        Returns hidden rows [tokens, hidden], and the logits of `logit_rows`: of so many best ids of
        a session as `candidates` says.
        """
        recorded = self.graphs.run(rows, spans, self.backend) if self.graphs else None
        if recorded is not None:
            scores = recorded[1].cpu() if logit_rows else recorded[0]  # one transfer for all
            return recorded[0], {
                name: scores[part.start : part.stop] for name, part in logit_rows.items()
            }
        places = [row for part in logit_rows.values() for row in part]
        hidden, drawn = self._computed(rows, spans, places)
        if drawn is None:
            return hidden, {}
        if self._vocabulary is not None:
            drawn = self._vocabulary.merge(
                drawn, [candidates[name] for name, part in logit_rows.items() for _ in part]
            )
        parts = torch.split(drawn.cpu(), [len(part) for part in logit_rows.values()])
        return hidden, dict(zip(logit_rows, parts, strict=True))

    def _computed(
        self, rows: torch.Tensor, spans: Sequence[TokenSpan], places: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        small_batch = self._small_batch_of(len(rows), spans) if self._has_kernels else None
        if small_batch is not None and self.fused is not None:
            return self.fused.run(rows, small_batch, places or None)
        step = self._stage.step
        step.small_batch = small_batch
        step.attend = (
            _attend_with(small_batch)
            if small_batch is not None
            else RaggedBatch(self._store, spans, self._like, self.backend).attend
        )
        try:
            return self._by_transformers(rows.to(self._device), spans, places)
        finally:
            step.small_batch = None

    def _small_batch_of(self, count: int, spans: Sequence[TokenSpan]) -> SmallBatch | None:
        """The step for our kernels, unless it is long or more threads would be quicker."""
        values = sum(span.end * span.count for span in spans) * self._store.arena.row_values
        if count > MOST_ROWS or (values > MOST_VALUES and torch.get_num_threads() > 1):
            return None
        index = index_rows([span.table_and_positions for span in spans])
        return SmallBatch(*index, self._store.arena.flat)

    def _by_transformers(
        self, rows: torch.Tensor, spans: Sequence[TokenSpan], places: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        stage = self._stage
        positions = torch.tensor([at for c in spans for at in range(c.position, c.end)])
        inputs = self._inputs(rows.unsqueeze(0))
        inputs |= {"position_ids": positions.to(self._device).unsqueeze(0)}
        inputs |= {"use_cache": False, "past_key_values": None}
        drawn = None
        if places:
            keep = torch.tensor(places, device=self._device)
            drawn = stage.model(**inputs, logits_to_keep=keep).logits[0]
        else:
            stage.base(**inputs)
        assert stage.leaving is not None
        return stage.leaving[0], drawn

    def _inputs(self, rows: torch.Tensor) -> dict[str, object]:
        if self._is_first:
            return {"input_ids": rows}
        hidden = rows.to(self._like.dtype)
        self._stage.entering = hidden
        return {"inputs_embeds": hidden}


def _attend_with(small_batch: SmallBatch) -> Callable[..., torch.Tensor]:
    """Attention of a layer that is not fused, for a step that the kernels run."""

    def attend(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        return attend_small_batch(small_batch, layer, query, key, value, options).unsqueeze(0)

    return attend
