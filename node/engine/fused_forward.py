"""Runs few rows through a stage of fused layers without the model around them.

What transformers does beside the layers (masks, caches, recorded outputs) costs as much as a small
layer. Only models whose forward is known to do nothing else are run so.
"""

from typing import Any, cast

import numpy as np
import torch

from node.engine.kernels.small_batch import SmallBatch
from node.engine.layers import module_matching
from node.engine.layers.fused_layer import FusedLayer, fused_add_rms_norm, weight_and_epsilon_of
from node.engine.shard_io import Array
from node.engine.stage_model import StageModel

FIXED_ROTARY = ("default", "linear", "llama3", "yarn")  # others' angles may change with the length
MOST_ANGLES = 1 << 15  # positions whose rotary embedding is kept


class Rotary:
    """The rotary embedding of positions, computed once by the model's own module."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._is_fixed = getattr(module, "rope_type", "") in FIXED_ROTARY
        self._like = torch.empty(0)
        self._known: tuple[Array, Array] = (np.empty((0, 0)), np.empty((0, 0)))

    def of(self, positions: Array) -> tuple[Array, Array]:
        """Cos and sin of int64 positions: [rows, head dim] each."""
        most = int(positions.max())
        if not self._is_fixed or most >= MOST_ANGLES:
            return self._computed(torch.from_numpy(positions))
        if most >= len(self._known[0]):
            self._known = self._computed(torch.arange(1 << most.bit_length()))
        return self._known[0].take(positions, 0), self._known[1].take(positions, 0)

    def _computed(self, positions: torch.Tensor) -> tuple[Array, Array]:
        cos, sin = self._module(self._like, position_ids=positions[None])
        return cos[0].numpy(), sin[0].numpy()


class FusedStage:
    """The layers of one stage with embedding, final norm and head as far as it has them."""

    def __init__(self, stage: StageModel) -> None:
        model, base = cast("Any", stage.model), cast("Any", stage.base)
        self._layers = [cast("FusedLayer", stage.layers[index]) for index in stage.owned]
        self._embed = base.embed_tokens
        self._rotary = Rotary(base.rotary_emb)
        self._head = model.get_output_embeddings() if stage.has_head else None
        self._norm = weight_and_epsilon_of(base.norm) if stage.has_head else None

    @classmethod
    def of(cls, stage: StageModel) -> "FusedStage | None":
        """What runs a loaded stage model so, if it can be."""
        is_known = module_matching.matches(stage.base, module_matching.PLAIN_MODELS)
        is_known = is_known and module_matching.matches(stage.model, module_matching.PLAIN_HEADS)
        layers = [stage.layers[index] for index in stage.owned]
        if not is_known or not all(isinstance(each, FusedLayer) for each in layers):
            return None
        return cls(stage)

    def run(
        self, rows: torch.Tensor, step: SmallBatch, logit_rows: list[int] | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run ids [tokens] or hidden rows [tokens, hidden].

        Returns hidden rows [tokens, hidden], and of the rows `logit_rows` the logits [rows, vocab].
        """
        step.rotate(*self._rotary.of(step.row_index[:, 1]))
        hidden = self._embed(rows[None])[0] if rows.ndim == 1 else rows.to(torch.float32, copy=True)
        added = None
        for layer in self._layers:
            added = layer.run_small_batch(hidden, added, step)
        if logit_rows is None or self._norm is None or self._head is None:
            assert added is not None
            return hidden.add_(added), None
        final = fused_add_rms_norm(hidden, added, self._norm)
        return hidden, self._head(final[logit_rows])
