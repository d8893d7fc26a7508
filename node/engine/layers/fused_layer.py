"""Llama's decoder layer with fewer, larger operations; it stands where transformers' layer stood.

Queries, keys and values are one product, gate and up another. A step of few rows runs kernels of
ours between the products, a longer one torch's operations, but for the gate where one thread runs.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from node.engine.attention.interface import AttentionContext, Options
from node.engine.kernels import numba_kernels
from node.engine.kernels.small_batch import SmallBatch
from node.engine.layers import module_matching
from node.engine.shard_io import Array

EMPTY = np.empty(0, np.float32)
NOTHING = np.empty((0, 0), np.float32)
SILU = ("SiLUActivation", "SiLU")  # transformers' and torch's own
Call = Callable[[torch.Tensor], torch.Tensor]


class FusedAttention(nn.Module):
    """Attention of Llama and its like: one projection in, rotary embedding, one out."""

    swarm_context: AttentionContext

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.layer_idx: int = attention.layer_idx
        self.head_dim: int = attention.head_dim
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.heads, self.kv_heads = (each.out_features // self.head_dim for each in projections[:2])
        self.qkv_proj = _joined(*projections)
        self.o_proj: nn.Linear = attention.o_proj
        has_norms = module_matching.matches(attention, module_matching.NORMED_HEADS)
        self.q_norm = attention.q_norm if has_norms else None
        self.k_norm = attention.k_norm if has_norms else None
        window, scaling = module_matching.window_of(attention), float(attention.scaling)
        self._options = Options(scaling, window or None)
        self._shape = (self.kv_heads, window, np.float32(scaling))
        self.seal()

    def seal(self) -> None:
        """Note how the projections are called, once they have their last form and hooks."""
        self._project, self._leave = _call_of(self.qkv_proj), _call_of(self.o_proj)
        query, epsilon = weight_and_epsilon_of(self.q_norm)
        self._norms = (query, weight_and_epsilon_of(self.k_norm)[0], epsilon)

    def forward(
        self, rows: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Attend normed rows of any number: [1, tokens, hidden]."""
        heads = self.qkv_proj(rows).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        query, key, value = heads.split((self.heads, self.kv_heads, self.kv_heads), 1)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = apply_rotary_pos_emb(query, key, *rotary)
        context = self.swarm_context
        assert context.step.attend is not None
        out = context.step.attend(context.layer, query[0], key[0], value[0], self._options)
        return cast("torch.Tensor", self.o_proj(out.flatten(2)))

    def attend_small_batch(self, rows: torch.Tensor, step: SmallBatch) -> torch.Tensor:
        """Attend few normed rows: [tokens, hidden]."""
        projected = self._project(rows).numpy()
        out = torch.empty(len(rows), self.heads * self.head_dim)
        numba_kernels.attend_fused(
            projected.reshape(len(rows), -1, self.head_dim),
            step.index,
            step.arenas(self.swarm_context.layer),
            self._norms,
            self._shape,
            out.numpy().reshape(len(rows), -1, self.head_dim),
        )
        return self._leave(out)


class FusedMLP(nn.Module):
    """SwiGLU with gate and up in one product."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_up_proj = _joined(mlp.gate_proj, mlp.up_proj)
        self.down_proj: nn.Linear = mlp.down_proj
        self.seal()

    def seal(self) -> None:
        """Note how the projections are called, once they have their last form and hooks."""
        self._enter, self._leave = _call_of(self.gate_up_proj), _call_of(self.down_proj)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Run rows of any number: [1, tokens, hidden]."""
        both = self.gate_up_proj(rows)
        if torch.get_num_threads() == 1:  # torch's two passes divide their rows among threads
            return cast("torch.Tensor", self.down_proj(silu_and_mul(both[0]).unsqueeze(0)))
        gate, up = both.chunk(2, -1)
        return cast("torch.Tensor", self.down_proj(functional.silu(gate) * up))

    def run_small_batch(self, rows: torch.Tensor) -> torch.Tensor:
        """Run few rows: [tokens, hidden]."""
        return self._leave(silu_and_mul(self._enter(rows)))


class FusedLayer(nn.Module):
    """Attention and MLP of one layer, each after a norm and added to what came in."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn = FusedAttention(layer.self_attn)
        self.mlp = FusedMLP(layer.mlp) if _is_gated(layer.mlp) else layer.mlp
        self.input_layernorm = layer.input_layernorm
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.seal()

    def seal(self) -> None:
        """Note what does not change any more, after loading."""
        self.self_attn.seal()
        if isinstance(self.mlp, FusedMLP):
            self.mlp.seal()
        self._before = weight_and_epsilon_of(self.input_layernorm)
        self._between = weight_and_epsilon_of(self.post_attention_layernorm)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: object,
    ) -> torch.Tensor:
        """Run rows [1, tokens, hidden], as transformers calls a layer."""
        small_batch = self.self_attn.swarm_context.step.small_batch
        if small_batch is not None:
            cos, sin = position_embeddings
            small_batch.rotate(cos[0].numpy(), sin[0].numpy())
            hidden = hidden_states[0].clone()
            hidden += self.run_small_batch(hidden, None, small_batch)
            return hidden.unsqueeze(0)
        rows = self.input_layernorm(hidden_states)
        hidden = hidden_states + self.self_attn(rows, position_embeddings)
        rows = self.mlp(self.post_attention_layernorm(hidden))
        return cast("torch.Tensor", hidden + rows)

    def run_small_batch(
        self, hidden: torch.Tensor, added: torch.Tensor | None, step: SmallBatch
    ) -> torch.Tensor:
        """Add `added` to few rows [tokens, hidden] in place, run; returns what to add next."""
        attended = self.self_attn.attend_small_batch(
            fused_add_rms_norm(hidden, added, self._before), step
        )
        rows = fused_add_rms_norm(hidden, attended, self._between)
        if isinstance(self.mlp, FusedMLP):
            return self.mlp.run_small_batch(rows)
        return cast("torch.Tensor", self.mlp(rows.unsqueeze(0))[0])


def fused_add_rms_norm(
    hidden: torch.Tensor, added: torch.Tensor | None, norm: tuple[Array, Any]
) -> torch.Tensor:
    """Add to hidden [tokens, hidden] in place; returns its norm, from weight and epsilon."""
    out = torch.empty_like(hidden)
    more = NOTHING if added is None else added.numpy()
    numba_kernels.fused_add_rms_norm(hidden.numpy(), more, *norm, out.numpy())
    return out


def silu_and_mul(both: torch.Tensor) -> torch.Tensor:
    """SwiGLU of gate and up side by side: [tokens, width] from [tokens, 2 x width]."""
    out = torch.empty(len(both), both.shape[-1] // 2)
    numba_kernels.silu_and_mul(both.numpy(), out.numpy())
    return out


def fuse(layer: nn.Module) -> "FusedLayer | None":
    """A layer that computes the same, from the loaded parts of this one, or None."""
    attention: Any = getattr(layer, "self_attn", nn.Identity())
    is_known = module_matching.matches(layer, module_matching.PLAIN_LAYERS)
    if not is_known or not module_matching.matches(attention, module_matching.PLAIN_ATTENTIONS):
        return None
    norms = [each for each in layer.modules() if type(each).__name__.endswith("RMSNorm")]
    if not module_matching.rotates_halves(attention) or not all(
        map(module_matching.is_rms_norm, norms)
    ):
        return None
    return FusedLayer(layer)


def weight_and_epsilon_of(norm: Any) -> tuple[Array, Any]:
    """What the kernels need of an RMS norm; no norm has no weights."""
    if norm is None:
        return EMPTY, np.float32(0)
    return norm.weight.detach().numpy(), np.float32(norm.variance_epsilon)


def _is_gated(mlp: Any) -> bool:
    return (
        module_matching.matches(mlp, module_matching.GATED_MLP)
        and type(mlp.act_fn).__name__ in SILU
    )


def _joined(*linears: nn.Linear) -> nn.Linear:
    """One linear for several of the same input."""
    weights = [each.weight for each in linears]
    with torch.device("meta"):
        joined = nn.Linear(linears[0].in_features, sum(map(len, weights)), bias=False)
    joined.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
    if any(each.bias is not None for each in linears):
        biases: list[torch.Tensor] = [
            weight.new_zeros(len(weight)) if each.bias is None else each.bias
            for each, weight in zip(linears, weights, strict=True)
        ]
        joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return joined


def _call_of(linear: nn.Module) -> Call:
    """How few rows [tokens, inputs] go through a linear; ranks sum rows [1, tokens, outputs]."""
    if linear._forward_hooks or linear._forward_pre_hooks:
        return lambda rows: cast("torch.Tensor", linear(rows.unsqueeze(0))[0])
    return cast("Call", linear.forward)
