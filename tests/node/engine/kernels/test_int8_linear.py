"""int8 stays close to float32, does not depend on the batch, and really is smaller."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from node.engine.kernels.int8_linear import Int8Linear, quantise_layer, saved_bytes
from node.engine.shard_io import StageSpec, StepItem
from node.engine.stage_runner import StageRunner
from swarm.errors import EngineError
from swarm.wire.sampling_params import Sampling

TWO_WAYS = ((0, 5, 8), (0, 5, 8))


def quantised(inputs: int, outputs: int, *, bias: bool) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    whole, layer = nn.Linear(inputs, outputs, bias=bias), nn.Linear(inputs, outputs, bias=bias)
    layer.load_state_dict(whole.state_dict())
    quantise_layer(layer)
    assert isinstance(layer, Int8Linear)
    return whole, layer


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 2, 17, 40])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 1000), (33, 47), (1000, 64)])
def test_results_are_within_two_percent(rows: int, inputs: int, outputs: int) -> None:
    whole, layer = quantised(inputs, outputs, bias=True)
    hidden = torch.randn(1, rows, inputs)
    expected = whole(hidden)
    assert float((layer(hidden) - expected).norm() / expected.norm()) < 0.02


@torch.inference_mode()
def test_a_row_does_not_depend_on_the_batch_around_it() -> None:
    _, layer = quantised(64, 128, bias=False)
    hidden = torch.randn(20, 64) * torch.logspace(-2, 2, 20)[:, None]
    together = layer(hidden)
    assert all(torch.equal(layer(hidden[n : n + 1])[0], together[n]) for n in range(20))
    assert bool((layer(torch.zeros(1, 64)) == 0).all())


def test_small_linears_stay() -> None:
    gate = nn.Linear(64, 1)
    quantise_layer(gate)
    assert type(gate) is nn.Linear
    assert saved_bytes(nn.Linear(64, 32, bias=False)) == 64 * 32 * 3 - 4 * 32


def test_int8_stage_is_smaller_and_close(
    tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    save(tmp_path, "llama", {})
    (whole,) = stage(tmp_path, (1, 3))
    (small,) = stage(tmp_path, (1, 3), quant="int8")
    assert small.weight_bytes < 0.3 * whole.weight_bytes
    hidden = torch.randn(9, 64)
    rows = []
    for runner in (whole, small):
        runner.open("s", capacity=20)
        rows.append(runner.step([StepItem("s", 0, hidden)])[0].rows)
    assert float((rows[0] - rows[1]).norm() / (rows[0] - hidden).norm()) < 0.05
    parts = ring([stage(tmp_path, (0, 4), TWO_WAYS, quant="int8")])
    assert parts.generate([5, 6, 7], Sampling(max_tokens=4))[1] == "length"


def test_int8_counts_its_own_bytes_against_the_budget(
    tmp_path: Path, save: Callable[..., Any]
) -> None:
    save(tmp_path, "llama", {})
    spec = StageSpec(tmp_path, 0, 2, 0, (0, 8), (0, 8), quant="int8")
    needed = StageRunner.load(spec, budget_bytes=1 << 26).weight_bytes
    row = 2 * 2 * 8 * 4 * 4
    assert StageRunner.load(spec, budget_bytes=needed + 64 * row).free_tokens == 64
    with pytest.raises(EngineError, match="budget"):
        StageRunner.load(spec, budget_bytes=needed + 63 * row)


@torch.inference_mode()
def test_packed_and_plain_integers_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = quantised(64, 128, bias=True)
    monkeypatch.setattr("node.engine.kernels.int8_linear.can_multiply_integers", lambda: False)
    _, second = quantised(64, 128, bias=True)
    assert type(second) is Int8Linear
    for rows in (1, 7, 100):
        hidden = torch.randn(1, rows, 64)
        assert torch.equal(first(hidden), second(hidden))
