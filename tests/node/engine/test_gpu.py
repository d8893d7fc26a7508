"""The GPU benchmark without a GPU and on a CPU; where there is a GPU, it against the CPU."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from benchmarks import gpu
from node.engine.attention import flex_paged
from node.engine.attention.backends import BACKENDS, FUSED, KERNEL, PADDED, PAGED, backend_of
from node.engine.attention.interface import Options, attend_prefill
from node.engine.shard_io import StageSpec
from node.engine.stage_runner import StageRunner
from swarm.wire.sampling_params import Sampling
from tests.node.engine.architectures import OPTIONS
from tests.node.engine.conftest import BUDGET, WHOLE

WIDE = {"head_dim": 32}  # flex attention compiles no narrower heads than 16
PROMPT, SAMPLING = list(range(3, 80)), Sampling(max_tokens=24)


def test_without_a_gpu_the_benchmark_says_so_and_leaves_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.slow
def test_its_code_runs_on_a_cpu_and_names_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "SESSIONS", (1, 4))
    monkeypatch.setattr(gpu, "PROMPTS", (64,))
    out = tmp_path / "gpu.json"
    flags = ["--device", "cpu", "--dtype", "f32", "--models", "tiny", "--rounds", "1"]
    paths = ["--cache", str(tmp_path), "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu", *flags, *paths])
    gpu.main()
    found = json.loads(out.read_text())
    figures = {each["name"]: each["value"] for each in found["figures"]}
    assert figures["first tokens equal to generate's"] == gpu.STREAM_TOKENS
    assert {"decode 4, padded", "decode 4, fused", "prefill 64, fused"} < set(figures)
    assert "no GPU" in found["machine"]["device"]


def on_both(spec: StageSpec) -> list[StageRunner]:
    """The same shard on the CPU and on the GPU."""
    return [
        StageRunner.load(spec, budget_bytes=BUDGET, device=device) for device in ("cpu", "cuda:0")
    ]


def test_each_device_gets_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_of(torch.device("cpu"), torch.float32) is KERNEL
    assert backend_of(torch.device("cpu"), torch.bfloat16) is PADDED
    monkeypatch.setattr(flex_paged, "has_triton", lambda: False)
    assert backend_of(torch.device("cuda:0"), torch.bfloat16) is FUSED
    monkeypatch.setattr(flex_paged, "has_triton", lambda: True)
    assert backend_of(torch.device("cuda:0"), torch.bfloat16) is PAGED


def test_the_result_of_a_kernel_that_keeps_tokens_outside_heads_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = (torch.rand(8, 5, 16), torch.rand(4, 9, 16), torch.rand(4, 9, 16))
    wanted = attend_prefill(*given, None, Options())
    plain = functional.scaled_dot_product_attention

    def as_on_a_gpu(*args: Any, **options: Any) -> torch.Tensor:
        rows: torch.Tensor = plain(*args, **options)
        return rows.transpose(-2, -3).contiguous().transpose(-2, -3)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", as_on_a_gpu)
    assert torch.equal(attend_prefill(*given, None, Options()), wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss", "deepseek_v3", "qwen3_moe"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_gpu_draws_what_the_cpu_draws(
    architecture: str,
    dtype: str,
    tmp_path: Path,
    save: Callable[..., Any],
    ring: Callable[..., Any],
) -> None:
    save(tmp_path, architecture, OPTIONS.get(architecture, {}))
    runners = on_both(StageSpec(tmp_path, 0, 4, 0, *WHOLE, dtype=dtype))
    found = [ring([[runner]]).generate(PROMPT, SAMPLING)[0] for runner in runners]
    same = 24 if dtype == "f32" else 1  # bf16 sums in another order: only the first is sure
    assert found[0][:same] == found[1][:same]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("backend", [name for name in BACKENDS if not BACKENDS[name].on_host])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss"])
def test_a_gpu_draws_the_same_with_every_backend(
    architecture: str,
    backend: str,
    tmp_path: Path,
    save: Callable[..., Any],
    ring: Callable[..., Any],
) -> None:
    save(tmp_path, architecture, OPTIONS.get(architecture, {}) | WIDE)
    runners = on_both(StageSpec(tmp_path, 0, 4, 0, *WHOLE))
    runners[1].forward.backend = BACKENDS[backend]
    found = [ring([[runner]]).generate(PROMPT, SAMPLING)[0] for runner in runners]
    assert found[0] == found[1]
    assert backend != "paged" or not flex_paged.is_broken()
