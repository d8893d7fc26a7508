"""Arena: the tensors that the blocks of all sessions lie in, and KVStore, both sides together."""

from collections.abc import Sequence

import numpy as np
import torch

from node.engine.kv_cache.block_manager import BlockManager
from node.engine.kv_cache.block_pool import BLOCK_TOKENS, runs_of
from node.engine.shard_io import Array

MOST_TOKENS = 1 << 20  # in one store
Arenas = tuple[torch.Tensor, torch.Tensor]  # keys and values: [kv heads, tokens, head dim]


class Arena:
    """Keys and values of `blocks` blocks, layer by layer."""

    def __init__(
        self,
        layers: Sequence[int],
        kv_heads: int,
        head_dims: tuple[int, int],  # of keys and of values
        blocks: int,
        like: torch.Tensor,
    ) -> None:
        self.row_values = kv_heads * head_dims[0]  # in one token's keys, in one layer
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._tensors = tuple(
            _zeros((len(layers), kv_heads, _room(blocks), head_dim), like) for head_dim in head_dims
        )
        self._flat: dict[int, tuple[Array, Array]] = {}

    def layer(self, layer: int) -> Arenas:
        """Keys and values of `layer`: [kv heads, tokens, head dim] each."""
        place = self._places[layer]
        return self._tensors[0][place], self._tensors[1][place]

    def flat(self, layer: int) -> tuple[Array, Array]:
        """Keys and values of `layer` as arrays, on a CPU: [kv heads, tokens, head dim] each."""
        found = self._flat.get(layer)
        if found is None:
            keys, values = (each.numpy() for each in self.layer(layer))
            found = self._flat[layer] = (keys, values)
        return found

    def copy(self, source: int, target: int, rows: int) -> None:
        """Copy the first rows of a block into another one."""
        theirs, mine = (block * BLOCK_TOKENS for block in (source, target))
        for each in self._tensors:
            each[:, :, mine : mine + rows] = each[:, :, theirs : theirs + rows]

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero free blocks: what a stranger's NaN left must not meet the next session."""
        for run in runs_of(blocks):
            for each in self._tensors:
                each[:, :, run.start * BLOCK_TOKENS : run.stop * BLOCK_TOKENS].zero_()

    def resize(self, blocks: int) -> None:
        """Hold `blocks` blocks of zeros from now on."""
        self._flat.clear()
        like = self._tensors[0].new_empty(0)
        shapes = [(*each.shape[:2], _room(blocks), each.shape[3]) for each in self._tensors]
        self._tensors = ()  # first: a GPU has no room for both
        self._tensors = tuple(_zeros(shape, like) for shape in shapes)


class KVStore:
    """Keys and values of the sessions of one shard, within `tokens` tokens."""

    def __init__(
        self,
        layers: Sequence[int],
        kv_heads: int,
        head_dims: tuple[int, int],  # of keys and of values
        tokens: int,
        like: torch.Tensor,
    ) -> None:
        blocks = tokens // BLOCK_TOKENS
        self.arena = Arena(layers, kv_heads, head_dims, blocks, like)
        self.manager = BlockManager(blocks, self.arena)

    def shrink(self, tokens: int) -> None:
        """Use `tokens` only, before any session; raises EngineError while there are some."""
        blocks = min(tokens // BLOCK_TOKENS, self.manager.block_count)
        self.manager.resize(blocks)
        self.arena.resize(blocks)


def _room(blocks: int) -> int:
    """Tokens of an arena: of an odd number of blocks, so that heads lie no power of two apart.

    Else a processor's cache would keep the same rows of all of them in the same few places.
    """
    return (blocks | 1) * BLOCK_TOKENS


def _zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zeros, since masked rows still meet a product and 0 x NaN is NaN; on CPU they cost no memory.

    numpy asks the kernel for zero pages that are only backed when written; torch writes them.
    """
    count = int(np.prod(shape))
    if like.device.type != "cpu" or not count:
        return like.new_zeros(shape)
    flat = np.zeros(count * like.element_size(), dtype=np.uint8)
    return torch.from_numpy(flat).view(like.dtype).view(shape)
