"""The one attention function that every architecture calls: it writes our KV and reads it back.

Registered with transformers as "swarm", a name that its mask registry lacks: models then build no
masks and no caches. The batch of the running step hangs on each attention module.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from node.engine.kernels import numba_kernels
from node.engine.kernels.numba_kernels import NO_SINKS
from node.engine.kernels.small_batch import SmallBatch

NAME = "swarm"


def register_attention() -> None:
    """Make `attn_implementation="swarm"` known to transformers."""
    AttentionInterface.register(NAME, swarm_attention)


def swarm_attention(
    module: nn.Module,
    query: torch.Tensor,  # [1, heads, tokens, head dim]
    key: torch.Tensor,  # [1, kv heads, tokens, head dim]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Attend the packed tokens of all sessions of the step: [1, tokens, heads, head dim]."""
    context: AttentionContext = module.swarm_context  # type: ignore[assignment]
    if context.options is None:
        context.options = Options.of(options)
    attend = context.step.attend
    assert attend is not None
    return attend(context.layer, query[0], key[0], value[0], context.options), None


@dataclass(slots=True)
class RunningStep:
    """How the running step attends, shared by all layers of a stage: one of the two is set."""

    attend: Callable[..., torch.Tensor] | None = None
    small_batch: SmallBatch | None = None  # fused layers run it with kernels


@dataclass(slots=True)
class AttentionContext:
    """What an attention module keeps of ours; its options never change after loading."""

    step: RunningStep
    layer: int
    options: "Options | None" = None


class Options:
    """What a layer asks of attention besides queries, keys and values."""

    __slots__ = ("is_plain", "scaling", "sinks", "softcap", "window")

    def __init__(
        self,
        scaling: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        self.scaling, self.window, self.softcap, self.sinks = scaling, window, softcap, sinks
        self.is_plain = softcap is None and sinks is None

    @classmethod
    def of(cls, given: dict[str, object]) -> "Options":
        """Read transformers' keyword arguments."""
        scaling, window = given.get("scaling"), given.get("sliding_window")
        softcap, sinks = given.get("softcap"), given.get("s_aux")
        return cls(
            scaling if isinstance(scaling, float) else None,
            window if isinstance(window, int) and window > 0 else None,
            softcap if isinstance(softcap, float) else None,
            sinks if isinstance(sinks, torch.Tensor) else None,
        )

    def scale_for(self, head_dim: int) -> float:
        """What scores are multiplied by."""
        return float(head_dim**-0.5) if self.scaling is None else self.scaling


def attend_prefill(
    query: torch.Tensor,  # [heads, tokens, head dim]
    keys: torch.Tensor,  # [kv heads, length, head dim]
    values: torch.Tensor,
    mask: torch.Tensor | None,  # added: [tokens, length]
    options: Options,
) -> torch.Tensor:
    """Attend the tokens of one session without repeating keys: [tokens, heads, head dim]."""
    heads, tokens, head_dim = query.shape
    kv_heads = keys.shape[0]
    grouped = query.reshape(kv_heads, heads // kv_heads, tokens, head_dim)
    if options.is_plain:
        shape = (-1, heads // kv_heads, -1, -1)
        rows = functional.scaled_dot_product_attention(
            grouped,
            keys.unsqueeze(1).expand(shape),
            values.unsqueeze(1).expand(shape),
            attn_mask=mask,
            scale=options.scaling,
        )
    else:
        scores = grouped.reshape(kv_heads, -1, head_dim) @ keys.transpose(-1, -2)
        scores = scores.reshape(kv_heads, -1, tokens, keys.shape[1])
        sinks = None if options.sinks is None else options.sinks.view(kv_heads, -1, 1, 1)
        scores = scores * options.scale_for(head_dim)
        weights = _weights_of(scores, mask, options.softcap, sinks)
        rows = weights.to(values.dtype).reshape(kv_heads, -1, keys.shape[1]) @ values
    return rows.reshape(heads, tokens, -1).transpose(0, 1)  # on a GPU tokens may lie outside heads


def attend_padded(
    query: torch.Tensor,  # [sessions, kv heads, group, head dim]
    keys: torch.Tensor,  # [sessions, kv heads, length, head dim]
    values: torch.Tensor,
    mask: torch.Tensor,  # added: [sessions, 1, 1, length]
    options: Options,
) -> torch.Tensor:
    """Attend one token of each session, padded to one length: [sessions, kv heads, group, dim].

    On a CPU two products beat the fused kernel, which expands its mask.
    """
    if options.is_plain and query.device.type != "cpu":
        return functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=options.scaling
        )
    scores = (query * options.scale_for(query.shape[-1])) @ keys.transpose(-1, -2)
    sinks = None if options.sinks is None else options.sinks.view(keys.shape[1], -1, 1)
    return _weights_of(scores, mask, options.softcap, sinks).to(values.dtype) @ values


def attend_small_batch(
    small_batch: SmallBatch,
    layer: int,
    query: torch.Tensor,  # [heads, tokens, head dim]
    key: torch.Tensor,  # [kv heads, tokens, head dim]
    value: torch.Tensor,
    options: Options,
) -> torch.Tensor:
    """Write keys and values and attend with our kernel: [tokens, heads, head dim]."""
    out = torch.empty(query.shape[1], query.shape[0], value.shape[2])
    sinks = NO_SINKS if options.sinks is None else options.sinks.detach().numpy()
    factor, cap = options.scale_for(query.shape[2]), options.softcap or 0.0
    numba_kernels.attend(
        tuple(each.contiguous().numpy() for each in (query, key, value)),
        (small_batch.row_index, small_batch.block_starts),
        small_batch.arenas(layer),
        (options.window or 0, np.float32(factor), np.float32(cap)),
        sinks,
        out.numpy(),
    )
    return out


def _weights_of(
    scores: torch.Tensor,
    mask: torch.Tensor | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Cap, mask and normalise scores; sinks [..., 1] take their part of the sum and vanish."""
    scores = scores.float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.float().expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]
