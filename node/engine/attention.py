"""The one attention function that every architecture calls: it writes our KV and reads it back.

Registered with transformers as "swarm", a name that its mask registry lacks: models then build no
masks and no caches. The batch of the running step hangs on each attention module.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from swarm.errors import EngineError

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
    attend: Callable[..., torch.Tensor] | None = getattr(module, "swarm_attend", None)
    if attend is None:
        raise EngineError(f"{type(module).__name__} was not prepared for a step.")
    return attend(module.layer_idx, query[0], key[0], value[0], Options.of(options)), None


class Options:
    """What a layer asks of attention besides queries, keys and values."""

    __slots__ = ("scaling", "sinks", "softcap", "window")

    def __init__(
        self,
        scaling: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        self.scaling, self.window, self.softcap, self.sinks = scaling, window, softcap, sinks

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


def attend_rows(
    query: torch.Tensor,  # [batch, kv heads, group * tokens, head dim], group major
    keys: torch.Tensor,  # [batch, kv heads, length, head dim]
    values: torch.Tensor,
    mask: torch.Tensor | None,  # added; broadcasts to [batch, 1, group * tokens, length]
    options: Options,
) -> torch.Tensor:
    """Attend grouped queries without repeating keys: [batch, kv heads, group * tokens, dim]."""
    if options.softcap is None and options.sinks is None:
        return functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=options.scaling
        )
    scale = query.shape[-1] ** -0.5 if options.scaling is None else options.scaling
    scores = (query @ keys.transpose(-1, -2)).float() * scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if mask is not None:
        scores = scores + mask
    weights = _softmax(scores, options.sinks, keys.shape[1])
    return weights.to(values.dtype) @ values


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None, kv_heads: int) -> torch.Tensor:
    if sinks is None:
        return scores.softmax(-1)
    batch, _, rows, _ = scores.shape
    group = sinks.numel() // kv_heads
    column = sinks.float().view(1, kv_heads, group, 1).expand(batch, -1, -1, rows // group)
    column = column.reshape(batch, kv_heads, rows, 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]
