"""Which attention a device runs: behind one signature, the portable one or torch's fused kernels.

Both read our padded blocks. The fused one needs no mask for a chunk of a prompt: the kernel knows
that its last token sees all rows, and lets heads share keys and values without a copy.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from node.engine.attention import Options, attend_chunk, attend_singles

Attend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, Options], torch.Tensor
]


@dataclass(frozen=True, slots=True)
class Backend:
    """How chunks of one session and single tokens of many sessions are attended."""

    name: str
    chunk: Attend
    singles: Callable[..., torch.Tensor]
    is_causal: bool  # a chunk without window, cap and sinks needs no mask


def attend_chunk_fused(
    query: torch.Tensor,  # [heads, tokens, head dim]
    keys: torch.Tensor,  # [kv heads, length, head dim]
    values: torch.Tensor,
    mask: torch.Tensor | None,  # None: each token sees the rows up to its own
    options: Options,
) -> torch.Tensor:
    """Attend the tokens of one session in one kernel: [tokens, heads, head dim]."""
    if not options.is_plain:
        return attend_chunk(query, keys, values, mask, options)
    tokens, length = query.shape[1], keys.shape[1]
    if mask is None and tokens > 1:
        mask = causal_lower_right(tokens, length)
    rows = functional.scaled_dot_product_attention(
        *(query.unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0)),
        attn_mask=mask,
        scale=options.scaling,
        enable_gqa=query.shape[0] != keys.shape[0],
    )
    return rows[0].transpose(0, 1)


PADDED = Backend("padded", attend_chunk, attend_singles, is_causal=False)
FUSED = Backend("fused", attend_chunk_fused, attend_singles, is_causal=True)
BACKENDS = {backend.name: backend for backend in (PADDED, FUSED)}


def backend_of(device: torch.device) -> Backend:
    """What is fastest on a device."""
    return FUSED if device.type == "cuda" else PADDED
