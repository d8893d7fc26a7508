"""Rows lie in blocks of the arena's tensors: seen in place, copied, and zeros when nobody's."""

import numpy as np
import torch

from node.engine.kv_cache.arena import KVStore
from node.engine.kv_cache.block_pool import BLOCK_TOKENS as BLOCK


def store_of(blocks: int, layers: int = 1, kv_heads: int = 2) -> KVStore:
    return KVStore(range(layers), kv_heads, (4, 4), blocks * BLOCK, torch.empty(0))


def test_closed_session_leaves_zeros() -> None:
    store = store_of(4)
    table = store.manager.open("a", 70)
    store.manager.grow("a", 0, 70)
    for arena in store.arena.layer(0):
        arena[:, table.slot_mapping(0, 70)] = float("nan")
    store.manager.close("a")
    assert all(bool((arena == 0).all()) for arena in store.arena.layer(0))


def test_keys_and_values_are_seen_as_arrays_in_place() -> None:
    store = store_of(2, layers=2)
    store.arena.layer(1)[1][1, 5] = 3.0
    keys, values = store.arena.flat(1)
    assert keys.shape == values.shape == (2, 3 * BLOCK, 4)  # an odd number of blocks
    assert bool((values[1, 5] == 3).all())
    assert np.count_nonzero(store.arena.flat(0)[1]) == 0


def test_shard_without_heads_still_counts_tokens() -> None:
    store = store_of(2, kv_heads=0)
    store.manager.open("a", 1)
    store.manager.grow("a", 0, 1)
    assert store.manager.free_tokens == BLOCK
    store.manager.close("a")
