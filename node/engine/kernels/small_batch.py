"""A step of few rows as the kernels want it: plain arrays, made once and used by every layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from node.engine.kv_cache.block_pool import PAGE_TOKENS
from node.engine.kv_cache.block_table import Slot
from node.engine.shard_io import Array

MOST_ROWS = 32  # more rows are a prompt: its products pay for torch's operations around them
MOST_VALUES = 1 << 19  # of keys, read by one thread; above it several threads are faster


@dataclass(slots=True)
class FewRows:
    """Where the rows of a step are written and what they see."""

    places: Array  # int64 [rows, 2]: where the pages of its session begin in `pages`, position
    pages: Array  # int64: the first row of each page, session after session
    arenas: Callable[[int], tuple[Array, Array]]  # of a layer: keys and values
    where: tuple[Array, ...] = ()  # places and pages with cos and sin, for the kernel

    def rotate(self, cos: Array, sin: Array) -> None:
        """Take the rotary embedding of the rows: [rows, head dim] each."""
        self.where = (self.places, self.pages, cos, sin)


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels can run a shard of this kind."""
    return device.type == "cpu" and dtype == torch.float32


def places_of(sessions: Sequence[tuple[Slot, range]]) -> tuple[Array, Array]:
    """Places [rows, 2] and pages, from the slots of sessions and the positions of their rows."""
    places, pages, first = [], [], 0
    for slot, positions in sessions:
        assert positions.stop <= len(slot.starts) * PAGE_TOKENS  # the kernels trust it
        places += [(first, at) for at in positions]
        pages.append(slot.starts)
        first += len(slot.starts)
    return np.array(places), np.concatenate(pages)
