"""Latent attention: keys and values of unlike widths, and what of a checkpoint is not ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from node.engine.kv_cache.arena import KVStore
from node.engine.kv_cache.block_pool import BLOCK_TOKENS
from swarm.checkpoint.folder import read_spec
from swarm.errors import BadModel
from swarm.wire.sampling_params import Sampling
from tests.node.engine.architectures import OPTIONS, TWO_WAYS
from tests.node.engine.conftest import BUDGET

KEYS, VALUES = 10, 8  # widths of the tiny config


def test_keys_and_values_take_their_own_widths() -> None:
    store = KVStore(range(2), 3, (5, 2), 3 * BLOCK_TOKENS, torch.empty(0))
    keys, values = store.arena.layer(1)
    assert keys.shape == (3, 3 * BLOCK_TOKENS, 5)
    assert values.shape == (3, 3 * BLOCK_TOKENS, 2)
    assert store.arena.row_values == 15


def test_the_plan_counts_what_a_token_really_takes(
    tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any]
) -> None:
    save(tmp_path, "deepseek_v3", OPTIONS["deepseek_v3"])
    spec = read_spec(tmp_path, "m")
    width = 8 * (KEYS + VALUES) * 4  # bytes of a token in one layer
    assert spec.kv_bytes(8, 4) == width
    (rank,) = stage(tmp_path, (1, 3))
    most = (BUDGET - rank.weight_bytes) // (2 * width)
    assert most - 2 * BLOCK_TOKENS < rank.free_tokens <= most  # whole blocks, an odd number


def test_shared_prompts_and_replays_keep_the_tokens(
    tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    save(tmp_path, "deepseek_v3", OPTIONS["deepseek_v3"])
    split = ring([stage(tmp_path, (0, 2), TWO_WAYS), stage(tmp_path, (2, 4), TWO_WAYS)])
    prompt, sampling = list(range(3, 90)), Sampling(max_tokens=6)
    first = split.generate(prompt, sampling)
    assert split.generate(prompt, sampling) == first
    assert split.generate([*prompt, *first[0][:2]], sampling, generated=2)[0] == first[0][2:]


def test_fewer_kv_heads_than_heads_are_refused_by_name(
    tmp_path: Path, save: Callable[..., Any]
) -> None:
    save(tmp_path, "deepseek_v3", OPTIONS["deepseek_v3"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_key_value_heads": 4}))
    with pytest.raises(BadModel, match="latent attention"):
        read_spec(tmp_path, "m")


def test_layers_that_only_draft_are_neither_counted_nor_read(
    tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any]
) -> None:
    save(tmp_path, "deepseek_v3", OPTIONS["deepseek_v3"])
    before = read_spec(tmp_path, "m")
    path = tmp_path / "model.safetensors"
    extra = {"model.layers.4.eh_proj.weight": torch.zeros(4000, 4000)}
    save_file(load_file(path) | extra, path, metadata={"format": "pt"})
    after = read_spec(tmp_path, "m")
    assert (after.layer_parameters, after.layers) == (before.layer_parameters, before.layers)
    (rank,) = stage(tmp_path, (0, 4))
    assert rank.bytes_read <= 1.01 * rank.weight_bytes
