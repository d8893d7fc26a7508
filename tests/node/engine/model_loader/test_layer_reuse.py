"""A shard takes over layers of the one before: nothing is read again, and it computes the same."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from node.engine.attention.decode_batch import TokenSpan
from node.engine.model_loader.layer_reuse import ReusableLayers
from node.engine.model_loader.load_shard import WeightSources
from node.engine.parallel.allreduce import LocalReducer
from node.engine.shard_io import StageSpec
from node.engine.stage_runner import StageRunner
from swarm.wire.sampling_params import Sampling

BUDGET = 1 << 26
WHOLE = (0, 8)
IDS = torch.tensor([5, 17, 80, 3, 44])
HIDDEN = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


def load(spec: StageSpec, kept: ReusableLayers | None = None) -> StageRunner:
    return StageRunner.load(spec, budget_bytes=BUDGET, sources=WeightSources(reusable=kept))


@torch.inference_mode()
def rows_of(runner: StageRunner) -> torch.Tensor:
    """What comes of a prompt, as hidden rows that leave the stage."""
    table = runner._store.manager.open("s", 64)
    rows = IDS if runner.is_first else HIDDEN
    runner._store.manager.grow("s", 0, len(rows))
    hidden, _ = runner.forward.run(rows, [TokenSpan(table, 0, len(rows), 0)], {}, {})
    runner._store.manager.close("s")
    return hidden.clone()


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("gemma2", {"head_dim": 8}),
        ("gpt2", {"num_key_value_heads": None, "num_attention_heads": 8}),
        ("mixtral", {"num_local_experts": 4}),
        ("phi3", {}),
    ],
)
@pytest.mark.parametrize("quant", ["", "int8"])
@pytest.mark.parametrize("spans", [((0, 3), (1, 4)), ((2, 4), (1, 3)), ((1, 3), (0, 4))])
def test_reusable_layers_compute_bit_by_bit_what_freshly_read_ones_do(
    architecture: str,
    options: dict[str, Any],
    quant: str,
    spans: tuple[tuple[int, int], tuple[int, int]],
    tmp_path: Path,
    save: Callable[..., Any],
) -> None:
    save(tmp_path, architecture, options)
    old, new = (StageSpec(tmp_path, *each, 0, WHOLE, WHOLE, quant=quant) for each in spans)
    first = load(old)
    rows_of(first)
    fresh, kept = load(new), load(new, first.release_layers())
    assert torch.equal(rows_of(fresh), rows_of(kept))
    assert kept.weight_bytes == fresh.weight_bytes
    assert 0 < kept.bytes_kept < kept.weight_bytes
    if not quant:
        assert kept.bytes_read == fresh.bytes_read - kept.bytes_kept
    again = load(old, kept.release_layers())
    assert torch.equal(rows_of(again), rows_of(load(old)))


def test_nothing_of_the_shard_before_but_its_layers_stays_in_memory(
    tmp_path: Path, save: Callable[..., Any]
) -> None:
    save(tmp_path, "llama", {})
    runner = load(StageSpec(tmp_path, 0, 3, 0, WHOLE, WHOLE))
    rows_of(runner)
    stage = runner._stage
    model, store = weakref.ref(stage.model), weakref.ref(runner._store)
    layers = [weakref.ref(stage.layers[index]) for index in range(3)]
    kept = runner.release_layers()
    del runner, stage
    gc.collect()
    assert model() is None
    assert store() is None
    assert None not in [layer() for layer in layers]
    moved = load(StageSpec(tmp_path, 2, 4, 0, WHOLE, WHOLE), kept)
    gc.collect()
    assert [layer() is None for layer in layers] == [True, True, False]
    assert moved.bytes_kept > 0


@pytest.mark.parametrize(("bounds", "is_kept"), [((0, 5, 8), True), ((0, 4, 8), False)])
def test_a_share_is_kept_only_if_it_is_the_same_share(
    bounds: tuple[int, ...],
    is_kept: bool,
    tmp_path: Path,
    save: Callable[..., Any],
    stage: Callable[..., list[StageRunner]],
    ring: Any,
) -> None:
    save(tmp_path, "llama", {})
    old = stage(tmp_path, (0, 3), ((0, 5, 8), (0, 5, 8)))
    reducers = LocalReducer.group(2)
    new = [
        StageRunner.load(
            StageSpec(tmp_path, 1, 4, rank, bounds, bounds),
            budget_bytes=BUDGET,
            reducer=reducers[rank],
            sources=WeightSources(reusable=old[rank].release_layers()),
        )
        for rank in range(2)
    ]
    assert [runner.bytes_kept > 0 for runner in new] == [is_kept] * 2
    first, reference = stage(tmp_path, (0, 1)), stage(tmp_path, (1, 4))
    sampling = Sampling(max_tokens=12)
    ids = [int(each) for each in IDS]
    expected = ring([first, reference]).generate(ids, sampling)
    assert ring([first, new]).generate(ids, sampling) == expected


def test_layers_of_another_folder_dtype_or_quant_are_not_kept(
    tmp_path: Path, save: Callable[..., Any]
) -> None:
    for name in ("one", "other"):
        save(tmp_path / name, "llama", {})
    spec = StageSpec(tmp_path / "one", 0, 3, 0, WHOLE, WHOLE)
    for changed in (
        StageSpec(tmp_path / "other", 0, 3, 0, WHOLE, WHOLE),
        StageSpec(tmp_path / "one", 0, 3, 0, WHOLE, WHOLE, quant="int8"),
        StageSpec(tmp_path / "one", 0, 3, 0, WHOLE, WHOLE, dtype="bf16"),
    ):
        assert load(changed, load(spec).release_layers()).bytes_kept == 0
