"""Which attention a device runs, behind one signature; all read the blocks of the KV store.

A chunk of a prompt reads one session's rows, single tokens of many sessions are one call: with our
kernel on a CPU, with the paged one of flex attention on a GPU, or portably with a copy of the rows.
Flex attention brings torch's compiler along, so it is imported where there is a GPU only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from node.engine.attention.decode_batch import DecodeBatch
from node.engine.attention.interface import (
    Options,
    attend_padded,
    attend_prefill,
    attend_small_batch,
)
from node.engine.kernels.small_batch import MOST_VALUES, has_kernels
from node.engine.kv_cache.arena import Arenas

Attend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, Options], torch.Tensor
]
# query, key and value: [heads, tokens, dim]
Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Backend:
    """How chunks of one session and single tokens of many sessions are attended."""

    name: str
    prefill: Attend
    decode: Callable[[DecodeBatch, int, Arenas, Parts, Options], torch.Tensor]
    is_causal: bool = False  # a chunk without window, cap and sinks needs no mask
    pads: bool = True  # sessions of unlike lengths in one call would cost as much as the longest
    on_host: bool = False  # reads the step on the host: for CPUs only, and not to be recorded


def attend_prefill_fused(
    query: torch.Tensor,  # [heads, tokens, head dim]
    keys: torch.Tensor,  # [kv heads, length, head dim]
    values: torch.Tensor,
    mask: torch.Tensor | None,  # None: each token sees the rows up to its own
    options: Options,
) -> torch.Tensor:
    """Attend the tokens of one session in one kernel: [tokens, heads, head dim]."""
    if not options.is_plain:
        return attend_prefill(query, keys, values, mask, options)
    tokens, length = query.shape[1], keys.shape[1]
    if mask is None and tokens > 1:
        from torch.nn.attention.bias import causal_lower_right

        mask = causal_lower_right(tokens, length)
    rows = functional.scaled_dot_product_attention(
        *(query.unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0)),
        attn_mask=mask,
        scale=options.scaling,
        enable_gqa=query.shape[0] != keys.shape[0],
    )
    return rows[0].transpose(0, 1)


def attend_gathered(
    batch: DecodeBatch, layer: int, arenas: Arenas, parts: Parts, options: Options
) -> torch.Tensor:
    """Attend one token of each session over padded copies of its rows: [sessions, heads, dim]."""
    query = parts[0].transpose(0, 1)  # [sessions, heads, head dim]
    if len(batch.length_groups) == 1:
        return _attend_padded(batch, arenas, query, options)
    out = query.new_empty((*query.shape[:2], arenas[1].shape[2]))
    for part, places in batch.length_groups:
        out[places] = _attend_padded(part, arenas, query[places], options)
    return out


def _attend_padded(
    batch: DecodeBatch, arenas: Arenas, query: torch.Tensor, options: Options
) -> torch.Tensor:
    rows, mask = batch.seen(options.window)
    keys, values = (arena[:, rows].transpose(0, 1) for arena in arenas)
    grouped = query.reshape(len(rows), keys.shape[1], -1, query.shape[2])
    out = attend_padded(grouped, keys, values, mask[:, None, None], options)
    return out.reshape(len(rows), query.shape[1], -1)


def attend_with_kernel(
    batch: DecodeBatch, layer: int, arenas: Arenas, parts: Parts, options: Options
) -> torch.Tensor:
    """Attend one token of each session with our kernel, unless several threads are quicker."""
    values = batch.seen_rows * parts[1].shape[0] * parts[1].shape[2]
    if values > MOST_VALUES and torch.get_num_threads() > 1:
        return attend_gathered(batch, layer, arenas, parts, options)
    return attend_small_batch(batch.small_batch, layer, *parts, options)


def attend_paged(
    batch: DecodeBatch, layer: int, arenas: Arenas, parts: Parts, options: Options
) -> torch.Tensor:
    """Attend one token of each session where its rows lie, or portably if that fails here."""
    from node.engine.attention import flex_paged

    if flex_paged.takes(parts[0]) and not flex_paged.is_broken():
        try:
            return flex_paged.attend(batch, arenas, parts[0], options)
        except flex_paged.ERRORS as error:
            flex_paged.give_up(error)
    return attend_gathered(batch, layer, arenas, parts, options)


KERNEL = Backend("kernel", attend_prefill, attend_with_kernel, pads=False, on_host=True)
PADDED = Backend("padded", attend_prefill, attend_gathered)
FUSED = Backend("fused", attend_prefill_fused, attend_gathered, is_causal=True)
PAGED = Backend("paged", attend_prefill_fused, attend_paged, is_causal=True, pads=False)
BACKENDS = {backend.name: backend for backend in (KERNEL, PADDED, FUSED, PAGED)}


def backend_of(device: torch.device, dtype: torch.dtype) -> Backend:
    """What is fastest on a device."""
    if device.type != "cuda":
        return KERNEL if has_kernels(device, dtype) else PADDED
    from node.engine.attention import flex_paged

    return PAGED if flex_paged.is_compiled(device) else FUSED


def start_afresh(device: torch.device) -> None:
    """Forget what was compiled, or failed to be, for the shard before."""
    if device.type == "cuda":
        from node.engine.attention import flex_paged

        flex_paged.start_afresh()
