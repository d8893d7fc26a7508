"""A step of few rows as the kernels want it: plain arrays, made once and used by every layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from node.engine.kv_cache.block_pool import BLOCK_TOKENS
from node.engine.kv_cache.block_table import BlockTable
from node.engine.shard_io import Array

MOST_ROWS = 32  # more rows are a prompt: its products pay for torch's operations around them
MOST_VALUES = 1 << 19  # of keys, read by one thread; above it several threads are faster


@dataclass(slots=True)
class SmallBatch:
    """Where the rows of a step are written and what they see."""

    row_index: Array  # int64 [rows, 2]: where its session's `block_starts` begin, its position
    block_starts: Array  # int64: the first row of each block, session after session
    arenas: Callable[[int], tuple[Array, Array]]  # of a layer: keys and values
    index: tuple[Array, ...] = ()  # both with cos and sin, for the kernel

    def rotate(self, cos: Array, sin: Array) -> None:
        """Take the rotary embedding of the rows: [rows, head dim] each."""
        self.index = (self.row_index, self.block_starts, cos, sin)


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels can run a shard of this kind."""
    return device.type == "cpu" and dtype == torch.float32


def index_rows(sessions: Sequence[tuple[BlockTable, range]]) -> tuple[Array, Array]:
    """Row index [rows, 2] and block starts of sessions, from the positions of their rows."""
    row_index, block_starts, first = [], [], 0
    for table, positions in sessions:
        assert positions.stop <= len(table.starts) * BLOCK_TOKENS  # the kernels trust it
        row_index += [(first, at) for at in positions]
        block_starts.append(table.starts)
        first += len(table.starts)
    return np.array(row_index), np.concatenate(block_starts)
