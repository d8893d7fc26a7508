"""Fused layers stand only where they compute the same, and few rows run like many."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from node.engine import forward
from node.engine.attention.decode_batch import TokenSpan
from node.engine.kernels import small_batch
from node.engine.kernels.int8_linear import Int8Linear
from node.engine.kernels.small_batch import SmallBatch
from node.engine.layers.fused_layer import FusedLayer
from node.engine.shard_io import StageSpec, StepItem
from node.engine.stage_runner import StageRunner
from swarm.wire.sampling_params import Sampling
from tests.node.engine.architectures import OPTIONS, TWO_WAYS

FUSED = ["llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"]
UNLIKE = ["ernie4_5", "glm4", "granite", "olmo2", "phi3", "seed_oss", "smollm3"]
DIRECT = ["llama", "mistral", "qwen2", "qwen3"]
IDS = torch.arange(3, 43)
WHOLE = (0, 8)
ROTARY = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
}


def is_fused(runner: StageRunner) -> list[bool]:
    layers = runner._stage.layer_names().values()
    return [isinstance(layer, FusedLayer) for layer in layers]


@pytest.mark.parametrize("architecture", FUSED)
def test_layers_like_llamas_are_fused(
    architecture: str, tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any]
) -> None:
    save(tmp_path, architecture, OPTIONS.get(architecture, {}))
    (runner,) = stage(tmp_path, (0, 4))
    assert is_fused(runner) == [True] * 4
    assert (runner.forward.fused is not None) == (architecture in DIRECT)


@pytest.mark.parametrize("architecture", UNLIKE)
def test_layers_that_do_something_else_stay_as_they_are(
    architecture: str, tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any]
) -> None:
    save(tmp_path, architecture, OPTIONS.get(architecture, {}))
    (runner,) = stage(tmp_path, (0, 4))
    assert is_fused(runner) == [False] * 4
    assert runner.forward.fused is None


def test_another_activation_is_not_taken_for_silu(
    tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any]
) -> None:
    save(tmp_path, "llama", {"hidden_act": "gelu"})
    (runner,) = stage(tmp_path, (0, 3))
    layer = runner._stage.layers[0]
    assert isinstance(layer, FusedLayer)
    assert type(layer.mlp).__name__ == "LlamaMLP"
    assert_few_run_like_many(runner)


@pytest.mark.parametrize("rotary", ROTARY)
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_few_rows_run_like_many(
    architecture: str,
    rotary: str,
    tmp_path: Path,
    save: Callable[..., Any],
    stage: Callable[..., Any],
) -> None:
    options = OPTIONS.get(architecture, {})
    save(
        tmp_path, architecture, options | {"rope_parameters": {"rope_theta": 1e4} | ROTARY[rotary]}
    )
    (runner,) = stage(tmp_path, (0, 3))
    assert_few_run_like_many(runner)


def test_biases_and_ranks_are_kept_where_projections_are_joined(
    tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    whole = save(tmp_path, "llama", {"attention_bias": True, "mlp_bias": True})
    split = ring([stage(tmp_path, (0, 2), TWO_WAYS), stage(tmp_path, (2, 4), TWO_WAYS)])
    assert is_fused(split.stages[0][1]) == [True, True]
    ids, _ = split.generate(IDS.tolist(), Sampling(max_tokens=12))
    expected = whole.generate(IDS[None], max_new_tokens=12, do_sample=False)[0, len(IDS) :]
    assert ids == expected.tolist()


def test_int8_projections_are_joined_before_they_are_rounded(
    tmp_path: Path, save: Callable[..., Any]
) -> None:
    save(tmp_path, "llama", {})
    spec = StageSpec(tmp_path, 0, 3, 0, WHOLE, WHOLE, quant="int8")
    runner = StageRunner.load(spec, budget_bytes=1 << 26)
    layer = runner._stage.layers[1]
    assert isinstance(layer, FusedLayer)
    assert isinstance(layer.self_attn.qkv_proj, Int8Linear)
    assert_few_run_like_many(runner, tolerance=2e-2)


def assert_few_run_like_many(runner: StageRunner, tolerance: float = 2e-5) -> None:
    """Compare a prompt in one piece, row by row, and by four."""
    runner.open("many", capacity=64)
    (whole,) = runner.step([StepItem("many", 0, IDS, sample=False)])
    assert len(IDS) > small_batch.MOST_ROWS
    assert whole.rows is not None
    for size in (1, 4):
        name = f"by {size}"
        runner.open(name, capacity=64)
        parts = []
        for at in range(0, len(IDS), size):
            (result,) = runner.step([StepItem(name, at, IDS[at : at + size], sample=False)])
            assert result.rows is not None
            parts.append(result.rows.clone())
        error = float((torch.cat(parts) - whole.rows).abs().max())
        assert error <= tolerance * float(whole.rows.abs().max())


def test_a_long_context_is_left_to_several_threads(
    tmp_path: Path,
    save: Callable[..., Any],
    stage: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save(tmp_path, "llama", {})
    (runner,) = stage(tmp_path, (0, 3))
    monkeypatch.setattr(forward, "MOST_VALUES", 20 * 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    seen: list[bool] = []
    small_batch_of = runner.forward._small_batch_of

    def watched(count: int, spans: Sequence[TokenSpan]) -> SmallBatch | None:
        small_batch: SmallBatch | None = small_batch_of(count, spans)
        seen.append(small_batch is not None)
        return small_batch

    monkeypatch.setattr(runner.forward, "_small_batch_of", watched)
    assert_few_run_like_many(runner)
    assert {True, False} == set(seen)
