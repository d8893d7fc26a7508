"""The measured speeds are plausible, and the measuring is short and leaves no trace."""

import time
from typing import Any

import pytest
import torch

from node.engine.throughput import measure
from swarm.model_spec import ModelSpec

SIZES: dict[str, Any] = {"layers": 2, "heads": 4, "kv_heads": 2, "vocab": 100, "context": 64}
COUNTS: dict[str, Any] = {"attention_parameters": 1, "mlp_parameters": 1}


@pytest.mark.parametrize(("hidden", "ffn"), [(64, 1024), (8192, 28672)])
def test_speeds_are_plausible_and_the_time_is_bounded(hidden: int, ffn: int) -> None:
    spec = ModelSpec("m", "d", "llama", hidden=hidden, ffn=ffn, head_dim=16, **SIZES, **COUNTS)
    before = torch.get_num_threads()
    started = time.monotonic()
    bytes_per_second, flops = measure(spec, threads=1, seconds=0.1)
    assert time.monotonic() - started < 10
    assert torch.get_num_threads() == before
    assert 1e8 < bytes_per_second < 1e13
    assert 1e8 < flops < 1e15
