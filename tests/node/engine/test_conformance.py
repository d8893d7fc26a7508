"""Every supported architecture: staged, unevenly sharded and ragged equals uncut, in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from node.engine import stage_runner
from swarm.checkpoint.folder import read_spec
from swarm.wire.sampling_params import Sampling
from tests.node.engine.architectures import (
    CASES,
    MORE,
    OPTIONS,
    PROMPTS,
    THREE_WAYS,
    TOLERANCE,
    TWO_WAYS,
    Recorder,
)


@pytest.mark.parametrize("architecture", CASES)
def test_split_model_has_the_logits_of_the_whole(
    architecture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save: Callable[..., Any],
    stage: Callable[..., Any],
    ring: Callable[..., Any],
) -> None:
    monkeypatch.setattr(stage_runner, "Sampler", Recorder)
    whole = save(tmp_path, architecture, OPTIONS.get(architecture, {}))
    spec = read_spec(tmp_path, architecture)
    assert (spec.kv_heads, spec.mlp_blocks) == (8, 8)
    stages = ring(
        [
            stage(tmp_path, (0, 1)),
            stage(tmp_path, (1, 3), THREE_WAYS),
            stage(tmp_path, (3, 4), TWO_WAYS),
        ]
    )
    torch.manual_seed(1)
    ids = {name: torch.randint(3, 96, (n + MORE,)).tolist() for name, n in PROMPTS.items()}
    for name in ids:
        stages.open(name, ids[name], Sampling())
    stages.step({"long": ids["long"][:12]})
    stages.step({"short": ids["short"][:7], "long": ids["long"][12:19]}, list(ids))
    for at in range(MORE):
        rows = {name: [ids[name][n + at]] for name, n in PROMPTS.items()}
        stages.step(rows, list(ids))
    for name, n in PROMPTS.items():
        with torch.inference_mode():
            expected = whole(torch.tensor([ids[name]]), use_cache=False).logits[0]
        seen = stages.stages[-1][0]._samplers[name].seen
        assert sorted(seen) == list(range(n, n + MORE + 1))
        for position, logits in seen.items():
            scale = float(expected.abs().max())
            assert float((logits - expected[position - 1]).abs().max()) <= TOLERANCE * scale
            assert scale > 0.1


WHOLE_ATTENTION = {"minimax_m2", "olmo2", "olmo3", "olmoe"}
ZERO_SHARES = ((0, 0, 8, 8), (0, 6, 6, 8))


@pytest.mark.parametrize("architecture", CASES)
def test_shard_reads_what_it_owns_and_owns_its_share(
    architecture: str, tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any]
) -> None:
    save(tmp_path, architecture, OPTIONS.get(architecture, {}))
    spec = read_spec(tmp_path, architecture)
    ranks = stage(tmp_path, (1, 3), THREE_WAYS)
    for rank, (kv, mlp) in zip(ranks, ((4, 1), (3, 4), (1, 3)), strict=True):
        kv_share = 1.0 if architecture in WHOLE_ATTENTION else kv / 8
        expected = kv_share * spec.attention_parameters + mlp / 8 * spec.mlp_parameters
        assert rank.weight_bytes / 8 == pytest.approx(expected, rel=0.15)  # 2 layers of 4 bytes
        assert rank.bytes_read <= 1.01 * rank.weight_bytes


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_oss", "phi3", "qwen2_moe", "phi"])
def test_rank_may_hold_no_heads_or_no_columns(
    architecture: str,
    tmp_path: Path,
    save: Callable[..., Any],
    stage: Callable[..., Any],
    ring: Callable[..., Any],
) -> None:
    save(tmp_path, architecture, OPTIONS.get(architecture, {}))
    prompt = [5, 9, 33, 4, 71, 12]
    whole = ring([stage(tmp_path, (0, 4))])
    split = ring([stage(tmp_path, (0, 2), ZERO_SHARES), stage(tmp_path, (2, 4), ZERO_SHARES)])
    sampling = Sampling(max_tokens=8)
    assert split.generate(prompt, sampling) == whole.generate(prompt, sampling)
