"""What the engine alone costs: `python -m benchmarks.engine [--quick] [--json FILE]`."""

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import torch
from transformers import LlamaConfig

from benchmarks.models import add_options, model_folder, prompt_ids
from benchmarks.ranks import Decode, together
from benchmarks.report import Gate, Report, cpu_seconds_of, median_seconds, ratio_of, seconds_of
from node.engine.shard_io import StageSpec, StepItem
from node.engine.stage_model import build_stage_model
from node.engine.stage_runner import StageRunner
from swarm.checkpoint.folder import load_config, read_spec
from swarm.model_spec import BUILT_IN

CHUNK = 256  # prompt tokens in one step
CONTEXT = 96  # rows that every decoding session has
MIB = 1 << 20
LLAMA_70B = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
}


class Bench:
    """One loaded model, and steps to time."""

    def __init__(self, folder: Path, layers: tuple[int, int] | None = None, **options: str) -> None:
        spec = read_spec(folder, folder.name)
        start, end = layers or (0, spec.layers)
        bounds = ((0, spec.kv_heads), (0, spec.mlp_blocks))
        stage = StageSpec(folder, start, end, 0, *bounds, **options)  # type: ignore[arg-type]
        self.load_seconds = seconds_of(lambda: self._load(stage))
        self.layers = end - start

    def _load(self, spec: StageSpec) -> None:
        self.runner = StageRunner.load(spec, budget_bytes=3 << 30)

    @contextmanager
    def decoding(self, sessions: int, context: int = CONTEXT) -> Iterator[Callable[[], object]]:
        """A function that decodes one token of every session, at places that stay the same."""
        names = [f"s{number}" for number in range(sessions)]
        for name in names:
            self.runner.open(name, capacity=context + 64)
        ids = torch.tensor(prompt_ids(context))
        for name in names:
            self.runner.step([StepItem(name, 0, ids)])
        last = ids[-1:]
        items = [StepItem(name, context - 1, last, sample=False) for name in names]
        yield lambda: self.runner.step(items)
        for name in names:
            self.runner.close(name)

    def prefill(self, tokens: int, chunk: int = CHUNK) -> None:
        """Compute a prompt chunk by chunk."""
        ids = torch.tensor(prompt_ids(tokens))
        self.runner.open("prompt", capacity=tokens)
        for at in range(0, tokens, chunk):
            self.runner.step([StepItem("prompt", at, ids[at : at + chunk])])
        self.runner.close("prompt")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Measure the engine.")
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("engine, one thread")
    rounds = options.rounds or (5 if options.quick else 9)
    names = ("tiny", BUILT_IN) if options.quick else ("mid", "tiny", BUILT_IN)
    for name in names:
        if options.only in name:
            measure_model(report, name, model_folder(name, options.cache), rounds)
    if options.only in "skeleton":
        measure_stage_model(report)
    report.show()
    report.write(options.json)


def measure_model(report: Report, name: str, folder: Path, rounds: int) -> None:
    """Everything about one model."""
    whole, small = Bench(folder), Bench(folder, quant="int8")
    report.add(name, "load", whole.load_seconds, "s")
    half = Bench(folder, (0, whole.layers // 2)).runner
    file_width = file_bytes_of(folder) / 4
    owned = half.weight_bytes * file_width
    gate = Gate(1.01)
    report.add(name, "half: bytes read / owned", half.bytes_read / owned, "x", gate)
    measure_overhead(report, name, whole, rounds)
    measure_decode(report, name, (whole, small), rounds)
    measure_prefill(report, name, (whole, small), max(3, rounds // 2))
    measure_tensor_parallel(report, name, folder, rounds)


def file_bytes_of(folder: Path) -> int:
    """Bytes of a weight in the files."""
    return 2 if load_config(folder).dtype == torch.bfloat16 else 4


def measure_overhead(report: Report, name: str, bench: Bench, rounds: int) -> None:
    """A step of one token against the matrix products it cannot do without, in CPU time."""
    linears = [
        module
        for layer in bench.runner._stage.layer_names().values()
        for module in layer.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    rows = {each.in_features: torch.ones(1, each.in_features) for each in linears}
    steps, floors = [], []

    def products() -> None:
        for each in linears:
            each(rows[each.in_features])

    with bench.decoding(1) as step, torch.inference_mode():
        step()
        for _ in range(rounds * 5):
            steps.append(cpu_seconds_of(step))
            floors.append(
                cpu_seconds_of(lambda: [each(rows[each.in_features]) for each in linears])
            )
    overhead = median(s - f for s, f in zip(steps, floors, strict=True)) / bench.layers
    report.add(name, "a layer's step", median(steps) / bench.layers * 1e3, "ms")
    report.add(name, "overhead per layer", overhead * 1e3, "ms", Gate(0.5))


def measure_decode(report: Report, name: str, benches: tuple[Bench, Bench], rounds: int) -> None:
    """Tokens per second of 1 to 64 sessions, float32 and int8 side by side."""
    for sessions in (1, 4, 16, 64):
        times: tuple[list[float], list[float]] = ([], [])
        with benches[0].decoding(sessions) as whole, benches[1].decoding(sessions) as small:
            for _ in range(rounds + 1):
                times[0].append(seconds_of(whole))
                times[1].append(seconds_of(small))
        report.add(name, f"decode {sessions}, f32", sessions / median(times[0]), "tokens/s")
        report.add(name, f"decode {sessions}, int8", sessions / median(times[1]), "tokens/s")
        gate = Gate(2.0, at_most=False) if (name, sessions) == ("mid", 1) else None
        report.add(
            name, f"decode {sessions}, int8 / f32", ratio_of(times[0][1:], times[1][1:]), "x", gate
        )


def measure_prefill(report: Report, name: str, benches: tuple[Bench, Bench], rounds: int) -> None:
    """Prompts of 512 and 2,048 tokens."""
    for tokens in (512, 2048):
        for word, bench in zip(("f32", "int8"), benches, strict=True):
            seconds = median_seconds(partial(bench.prefill, tokens), rounds)
            report.add(name, f"prefill {tokens}, {word}", tokens / seconds, "tokens/s")


def measure_tensor_parallel(report: Report, name: str, folder: Path, rounds: int) -> None:
    """The same steps on two processes with half of every layer each, joined through memory."""
    decode = Decode(folder, rounds)
    for sessions, alone, two in zip(
        (1, 16), decode(0, None), together(decode, near=True), strict=True
    ):
        report.add(name, f"decode {sessions}, 2 ranks / 1", two / alone, "x time")


def measure_stage_model(report: Report) -> None:
    """One stage of a 70B model without its weights, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, grown = pool.apply(stage_model_cost)
    report.add("70B shape", "skeleton of 20 layers", seconds, "s", Gate(1.0))
    report.add("70B shape", "resident bytes it adds", grown, "MiB", Gate(300))


def stage_model_cost() -> tuple[float, float]:
    """Seconds, and MiB that it adds."""
    config = LlamaConfig(**LLAMA_70B)  # type: ignore[arg-type]
    build_stage_model(LlamaConfig(), range(1), torch.float32, has_head=False)  # imports
    before = psutil.Process().memory_info().rss
    seconds = seconds_of(
        lambda: build_stage_model(config, range(20, 40), torch.bfloat16, has_head=False)
    )
    grown = psutil.Process().memory_info().rss - before
    return seconds, grown / MIB


if __name__ == "__main__":
    main()
