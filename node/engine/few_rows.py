"""A step of few rows as the kernels want it: plain arrays, made once and used by every layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from node.engine.kernels import Array

MOST_ROWS = 32  # more rows are a prompt: its products pay for torch's operations around them
MOST_VALUES = 1 << 19  # of keys, read by one thread; above it several threads are faster


@dataclass(slots=True)
class FewRows:
    """Where the rows of a step are written and what they see."""

    places: Array  # int64 [rows, 3]: first token of the block, its size, position
    arenas: Callable[[int], tuple[Array, Array]]  # of a layer: flat keys and values
    where: tuple[Array, ...] = ()  # places with cos and sin, for the kernel

    def rotate(self, cos: Array, sin: Array) -> None:
        """Take the rotary embedding of the rows: [rows, head dim] each."""
        self.where = (self.places, cos, sin)


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels can run a shard of this kind."""
    return device.type == "cpu" and dtype == torch.float32


def places_of(blocks: Sequence[tuple[int, int, range]]) -> Array:
    """The places of rows, from first token, size and positions of each session's: [rows, 3]."""
    return np.array([(start, size, at) for start, size, rows in blocks for at in rows])
