"""Attention of single tokens over the blocks of the KV store as they lie, with flex attention.

A GPU runs it compiled, without a copy of any row; elsewhere torch computes the same slowly, which
is how it is tested. After He et al. 2024 (Flex Attention, section 4.3 on paged attention).
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.utils._triton import has_triton

from node.engine.attention.decode_batch import NO_BLOCK, DecodeBatch
from node.engine.attention.interface import Options
from node.engine.kv_cache.arena import Arenas
from node.engine.kv_cache.block_pool import BLOCK_TOKENS
from swarm.formatting import printable

logger = logging.getLogger(__name__)

QUERY_BLOCK = 128  # of the block mask: one token is a part of one
BUCKET = 4  # sessions are filled up to its next power: each number of them is compiled for itself
COMPILED_KINDS = 64  # numbers of sessions x kinds of layers, before the next shard is loaded
LEAST_HEAD_DIM = 16  # of torch's kernel: a product of fewer columns does not exist in Triton
LONGEST_CAUSE = 300  # characters
ERRORS = (TorchDynamoException, FailOnRecompileLimitHit)


def is_compiled(device: torch.device) -> bool:
    """Whether flex attention is one kernel on a device."""
    return device.type == "cuda" and has_triton()


def is_broken() -> bool:
    """Whether flex attention has failed in this shard."""
    return bool(_failures)


def takes(heads: torch.Tensor) -> bool:
    """Whether heads [.., head dim] are wide enough for what flex attention is on their device."""
    return heads.shape[-1] >= LEAST_HEAD_DIM or not is_compiled(heads.device)


def give_up(error: Exception) -> None:
    """Do without flex attention until the next shard."""
    cause = printable(str(error), LONGEST_CAUSE)  # torch adds all of the graph
    logger.warning("flex attention cannot be compiled here: %s", cause)
    _failures.append(error)


def start_afresh() -> None:
    """Forget what was compiled, or failed, for the shard before."""
    _failures.clear()
    if _flex.cache_info().currsize:
        _flex.cache_clear()
        torch.compiler.reset()


_failures: list[Exception] = []


def attend(
    batch: DecodeBatch,
    arenas: Arenas,
    heads: torch.Tensor,  # queries: [heads, sessions, head dim]
    options: Options,
) -> torch.Tensor:
    """Attend one token of each session over its blocks: [sessions, heads, head dim].

    Raises one of ERRORS if flex attention cannot be compiled for the device.
    """
    count, bucket = heads.shape[1], BUCKET
    while bucket < count:
        bucket *= BUCKET
    query = heads.new_zeros((bucket, heads.shape[0], heads.shape[2]))
    query[:count] = heads.transpose(0, 1)
    mask = batch.cached(
        ("paged", options.window), lambda: _block_mask(batch, bucket, arenas, options)
    )
    out, aux = _flex(query.device)(
        query.unsqueeze(2),
        *(each.unsqueeze(0) for each in arenas),
        score_mod=_capped(options.softcap),
        block_mask=mask,
        scale=options.scaling,
        enable_gqa=query.shape[1] != arenas[0].shape[0],
        return_aux=AuxRequest(lse=options.sinks is not None),
    )
    rows: torch.Tensor = out[:count, :, 0]
    if options.sinks is None:
        return rows
    lse: torch.Tensor = aux.lse[:count, :, 0]
    share = torch.sigmoid(lse - options.sinks.float())  # what sinks leave
    return rows * share.unsqueeze(-1).to(rows.dtype)


def _block_mask(batch: DecodeBatch, bucket: int, arenas: Arenas, options: Options) -> BlockMask:
    """Which blocks each session reads; its shapes follow from the store and `bucket` alone.

    Only the last block, and with a window the oldest one, hold rows that are not seen.
    """
    more = bucket - len(batch.positions)
    blocks = torch.cat([batch.blocks, batch.blocks[:1].expand(more, -1)])
    positions = torch.nn.functional.pad(batch.positions, (0, more))  # one block of the first
    tokens = arenas[0].shape[1]
    total, window = tokens // BLOCK_TOKENS, options.window
    order = torch.arange(blocks.shape[1], device=blocks.device)
    place = blocks.new_full((bucket, total + 1), NO_BLOCK)  # of a block in a session
    place.scatter_(1, torch.where(blocks == NO_BLOCK, total, blocks), order.expand_as(blocks))
    last, oldest = positions // BLOCK_TOKENS, torch.zeros_like(positions)
    if window is not None:
        oldest = (positions - window + 1).clamp_min(0) // BLOCK_TOKENS
    edges = torch.stack([last, oldest], 1)[:, : 1 if window is None else 2]
    begin = oldest if window is None else oldest + 1
    between = (order + begin[:, None]).clamp_max(blocks.shape[1] - 1)

    def sees(session: Any, head: Any, token: Any, row: Any) -> Any:
        of = place[session, row // BLOCK_TOKENS]
        at = of * BLOCK_TOKENS + row % BLOCK_TOKENS
        seen = (of >= 0) & (at <= positions[session])
        return seen if window is None else seen & (at > positions[session] - window)

    def listed(places: torch.Tensor) -> torch.Tensor:
        indices = blocks.new_zeros((bucket, 1, 1, total), dtype=torch.int32)
        width = min(total, places.shape[1])
        indices[:, 0, 0, :width] = blocks.gather(1, places)[:, :width].clamp_min(0)
        return indices

    def counted(counts: torch.Tensor) -> torch.Tensor:
        return counts.to(torch.int32)[:, None, None]

    return BlockMask.from_kv_blocks(
        counted((last - oldest + 1).clamp_max(edges.shape[1])),
        listed(edges),
        counted((last - begin).clamp_min(0)),
        listed(between),
        BLOCK_SIZE=(QUERY_BLOCK, BLOCK_TOKENS),
        mask_mod=sees,
        seq_lengths=(1, tokens),
        compute_q_blocks=False,
    )


@cache
def _capped(cap: float | None) -> Callable[..., Any] | None:
    if cap is None:
        return None

    def capped(score: Any, session: Any, head: Any, token: Any, row: Any) -> Any:
        return cap * torch.tanh(score / cap)

    return capped


@cache
def _flex(device: torch.device) -> Callable[..., Any]:
    if not is_compiled(device):
        return flex_attention
    torch._dynamo.config.recompile_limit = COMPILED_KINDS
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return compiled
