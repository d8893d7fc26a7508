"""What the engine does on a GPU: `python -m benchmarks.gpu [--json FILE]`; exits 2 without one.

Random Llamas in bf16, one device: both attention backends, decode steps recorded as CUDA graphs or
not, and transformers' own `generate` beside them. `--device cpu` runs the same code without a GPU.
"""

import argparse
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.engine import Bench
from benchmarks.models import SHAPES, add_options, model_folder, prompt_ids
from benchmarks.report import Report, seconds_of
from node.engine.attention.backends import BACKENDS
from node.engine.cuda_graphs import DecodeGraphs
from node.engine.shard_io import StageSpec, StepItem
from node.engine.stage_runner import StageRunner
from swarm.wire.sampling_params import Sampling
from swarm.wire.tensor_codec import DTYPES

SESSIONS = (1, 4, 16, 64)
PROMPTS = (512, 2048)
LONG_CHUNK = 2048  # in one step, which nodes never do: what the limit of a step's rows costs
CONTEXT = 512  # rows that every decoding session has
STREAM_TOKENS = 64
CPU_BYTES = 3 << 30
GPU_SHARE = 0.5  # of what is free, for weights and KV


def main() -> None:
    """Measure and report; leave with 2 if there is no GPU."""
    parser = argparse.ArgumentParser(description="Measure the engine on a GPU.")
    add_options(parser)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", default="bf16", choices=sorted(DTYPES))
    parser.add_argument("--models", default="mid,large", help=f"of {', '.join(SHAPES)}")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was measured.", file=sys.stderr)
        sys.exit(2)
    report = Report(f"engine on {name_of(device)}, {options.dtype}", device=name_of(device))
    rounds = options.rounds or (5 if options.quick else 20)
    for name in options.models.split(","):
        if options.only in name:
            measure_model(
                report, GpuBench(model_folder(name, options.cache), device, options.dtype), rounds
            )
    report.show()
    report.write(options.json)


def name_of(device: torch.device) -> str:
    """What the machine calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} (no GPU)"


class GpuBench(Bench):
    """One whole model on one device."""

    def __init__(self, folder: Path, device: torch.device, dtype: str) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        super().__init__(folder, dtype=dtype)

    def _load(self, spec: StageSpec) -> None:
        budget = CPU_BYTES
        if self.device.type == "cuda":
            budget = int(GPU_SHARE * torch.cuda.mem_get_info(self.device)[0])
        self.runner = StageRunner.load(spec, budget_bytes=budget, device=str(self.device))

    def seconds(self, run: Callable[[], object], rounds: int) -> float:
        """Median seconds of a call and all that it starts, after some to warm up."""
        for _ in range(6):  # a graph is recorded on the way
            run()
        return median(seconds_of(lambda: self.finished(run)) for _ in range(rounds))

    def finished(self, run: Callable[[], object]) -> None:
        """Run to the end of what was started on the device."""
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def choose(self, backend: str, *, graphs: bool) -> None:
        """Use an attention backend, with recorded decode steps or without."""
        runner = self.runner
        runner.forward.backend = BACKENDS[backend]
        runner.forward.graphs = None
        if graphs:
            runner.forward.graphs = DecodeGraphs(runner._stage, runner._store, runner.forward._like)

    def stream(self) -> list[int]:
        """Generate greedily, alone."""
        prompt = prompt_ids(32)
        self.runner.open(
            "stream",
            capacity=32 + STREAM_TOKENS,
            history=prompt,
            sampling=Sampling(max_tokens=STREAM_TOKENS, speculate=0),
        )
        rows, position = prompt, 0
        ids: list[int] = []
        while len(ids) < STREAM_TOKENS:
            item = StepItem("stream", position, torch.tensor(rows), sample=True)
            (result,) = self.runner.step([item])
            assert result.token is not None
            position += len(rows)
            rows = [result.token]
            ids.append(result.token)
        self.runner.close("stream")
        return ids


def measure_model(report: Report, bench: GpuBench, rounds: int) -> None:
    """Everything about one model."""
    name = bench.folder.name
    report.add(name, "load", bench.load_seconds, "s")
    report.add(name, "weights", bench.runner.weight_bytes / 2**20, "MiB")
    for backend in (each.name for each in BACKENDS.values() if not each.on_host):
        for graphs in (False, True) if bench.device.type == "cuda" else (False,):
            bench.choose(backend, graphs=graphs)
            measure_decode(report, bench, f"{backend}{', graphs' if graphs else ''}", rounds)
        bench.choose(backend, graphs=False)
        for tokens in PROMPTS:
            seconds = bench.seconds(partial(bench.prefill, tokens), max(3, rounds // 4))
            report.add(name, f"prefill {tokens}, {backend}", tokens / seconds, "tokens/s")
        seconds = bench.seconds(partial(bench.prefill, LONG_CHUNK, LONG_CHUNK), max(3, rounds // 4))
        rate = LONG_CHUNK / seconds
        report.add(name, f"prefill {LONG_CHUNK} in one step, {backend}", rate, "tokens/s")
    measure_generate(report, bench, rounds)


def measure_decode(report: Report, bench: GpuBench, how: str, rounds: int) -> None:
    """Tokens per second of one stream with sampling, and of steps of some sessions."""
    name = bench.folder.name
    seconds = bench.seconds(bench.stream, max(3, rounds // 4))
    report.add(name, f"one stream, {how}", STREAM_TOKENS / seconds, "tokens/s")
    for sessions in SESSIONS:
        with bench.decoding(sessions, CONTEXT) as step:
            seconds = bench.seconds(step, rounds)
        report.add(name, f"decode {sessions}, {how}", sessions / seconds, "tokens/s")
    graphs = bench.runner.forward.graphs
    if graphs is not None and graphs.is_broken:
        report.add(name, f"recording refused, {how}", 1, "")


def measure_generate(report: Report, bench: GpuBench, rounds: int) -> None:
    """transformers' own `generate` of the same tokens, and how many of them are the same."""
    bench.choose(bench.runner.forward.backend.name, graphs=False)
    ours = bench.stream()
    auto: Any = AutoModelForCausalLM
    whole = auto.from_pretrained(bench.folder, dtype=DTYPES[bench.dtype]).to(bench.device).eval()
    prompt = torch.tensor([prompt_ids(32)], device=bench.device)

    def generate() -> list[int]:
        with torch.inference_mode():
            found = whole.generate(prompt, max_new_tokens=STREAM_TOKENS, do_sample=False)
        ids: list[int] = found[0, prompt.shape[1] :].tolist()
        return ids

    seconds = bench.seconds(generate, max(3, rounds // 4))
    name = bench.folder.name
    report.add(name, "one stream, transformers' generate", STREAM_TOKENS / seconds, "tokens/s")
    pairs = list(zip(ours, generate(), strict=True))
    same = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
    report.add(name, "first tokens equal to generate's", same, f"of {STREAM_TOKENS}")


if __name__ == "__main__":
    main()
