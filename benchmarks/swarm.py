"""What two nodes on loopback reach: `python -m benchmarks.swarm [--quick] [--json FILE]`."""

import argparse
import asyncio
import itertools
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import uvloop
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.hop import hop_seconds
from benchmarks.models import add_options, model_folder, prompt_ids
from benchmarks.report import Gate, Report, ratio_of, seconds_of
from benchmarks.small_swarm import SmallSwarm, small_swarm
from swarm.checkpoint.folder import read_spec
from swarm.model_spec import BUILT_IN, ModelSpec

PROMPT = 32
NEW = 64
LONG = 2048
CHUNK = 256
IDLE_ASKED = 12  # first tokens for one round of the others
SINGLE_GATES = {"mid": 1.0, "tiny": 1.25}
BATCH_GATES = {"mid": 1.3, "tiny": 0.9}
GAIN_GATES = {"": 5.0, "int8": 8.0}


class Local:
    """The same model whole in this process, through transformers' own `generate`."""

    def __init__(self, folder: Path) -> None:
        disable_progress_bar()  # type: ignore[no-untyped-call]
        auto: Any = AutoModelForCausalLM
        self._model: Any = auto.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def generate(self, batch: int, tokens: int) -> float:
        """Tokens per second of a batch."""
        ids = torch.tensor([prompt_ids(PROMPT, seed) for seed in range(batch)])
        options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        mask = torch.ones_like(ids)
        seconds = seconds_of(lambda: self._model.generate(ids, attention_mask=mask, **options))
        return batch * tokens / seconds


SEEDS = itertools.count()


def fresh_prompt(tokens: int) -> list[int]:
    """A prompt that no stage has seen before: none may profit from what is cached."""
    return prompt_ids(tokens, next(SEEDS))


async def crowd(swarm: SmallSwarm, clients: int, tokens: int) -> float:
    """Tokens per second of clients that start together."""
    start = perf_counter()
    asks = [swarm.ask(fresh_prompt(PROMPT), tokens) for _ in range(clients)]
    answers = await asyncio.gather(*asks)
    return sum(len(each.token_ids) for each in answers) / (perf_counter() - start)


class Bench:
    """Swarms of one model, and what they are compared with."""

    def __init__(self, report: Report, name: str, folder: Path, rounds: int) -> None:
        self._report, self._name, self._folder, self._rounds = report, name, folder, rounds
        self._spec: ModelSpec = read_spec(folder, name)
        self._local = Local(folder)
        self._local.generate(1, 4)

    async def float32(self, *, large: bool) -> None:
        """A swarm in float32 against local `generate`."""
        async with small_swarm(self._spec, self._folder) as swarm:
            await crowd(swarm, 2, 4)
            self._add("ready", swarm.ready_seconds, "s")
            await self._single(swarm)
            alone = await self._gain(swarm, "")
            await self._against_batch(swarm)
            await self._latency(swarm)
            if large:
                self._add("64 clients", await crowd(swarm, 64, NEW), "tokens/s")
            for kind, size in swarm.resident_bytes().items():
                self._add(f"resident, {kind}", size / (1 << 20), "MiB")
        await self._without_batching(alone)

    async def int8(self) -> None:
        """The gain of a crowd with int8 weights."""
        async with small_swarm(self._spec, self._folder, quant="int8") as swarm:
            await crowd(swarm, 2, 4)
            await self._gain(swarm, "int8")

    async def _single(self, swarm: SmallSwarm) -> None:
        ours, theirs = [], []
        for _ in range(self._rounds):
            ours.append(1 / await crowd(swarm, 1, NEW))
            theirs.append(1 / self._local.generate(1, NEW))
        self._add("1 client", median(ours) * 1e3, "ms/token")
        self._add("local generate", median(theirs) * 1e3, "ms/token")
        gate = SINGLE_GATES.get(self._name)
        self._add("1 client / local", ratio_of(ours, theirs), "x time", gate and Gate(gate))

    async def _gain(self, swarm: SmallSwarm, quant: str) -> float:
        """Tokens per second of 16 clients."""
        word = quant or "f32"
        alone, few, many = [], [], []
        spent: dict[int, list[float]] = {1: [], 16: []}
        for _ in range(self._rounds):
            before = sum(swarm.cpu_seconds().values())
            alone.append(await crowd(swarm, 1, NEW))
            between = sum(swarm.cpu_seconds().values())
            few.append(await crowd(swarm, 4, NEW))
            after = sum(swarm.cpu_seconds().values())
            many.append(await crowd(swarm, 16, NEW))
            spent[1].append((between - before) / NEW)
            spent[16].append((sum(swarm.cpu_seconds().values()) - after) / (16 * NEW))
        for clients, speeds in ((1, alone), (4, few), (16, many)):
            self._add(f"{clients} clients, {word}", median(speeds), "tokens/s")
        for clients, each in spent.items():  # all processes: what two idle cores would allow
            self._add(f"CPU, {clients} clients, {word}", median(each) * 1e3, "ms/token")
        ideal = 2 * ratio_of(spent[1], spent[16])
        self._add(f"16 clients / 1 by CPU, {word}", ideal, "x on two idle cores at most")
        is_gated = self._name == "mid"
        gate = Gate(GAIN_GATES[quant], at_most=False) if is_gated else None
        self._add(f"16 clients / 1, {word}", ratio_of(many, alone), "x", gate)
        return median(many)

    async def _against_batch(self, swarm: SmallSwarm) -> None:
        ours, theirs = [], []
        for _ in range(self._rounds):
            ours.append(await crowd(swarm, 16, NEW))
            theirs.append(self._local.generate(16, NEW))
        limit = BATCH_GATES.get(self._name)
        gate = Gate(limit, at_most=False) if limit else None
        self._add("local generate, batch 16", median(theirs), "tokens/s")
        self._add("16 clients / local batch 16", ratio_of(ours, theirs), "x", gate)

    async def _latency(self, swarm: SmallSwarm) -> None:
        """First token of a short prompt, idle and beside a prompt of 2,048 tokens."""
        if self._spec.context < LONG + 1:
            return
        busy, chunks = [], []
        asked = range(IDLE_ASKED * self._rounds)  # each is so short that few of them say nothing
        idle = [(await swarm.ask(fresh_prompt(PROMPT), 1)).ttft_seconds for _ in asked]
        for _ in range(self._rounds):
            alone = (await swarm.ask(fresh_prompt(LONG), 1)).ttft_seconds
            chunks.append(alone / (LONG // CHUNK + 1))  # two stages, one chunk behind the other
            long = asyncio.create_task(swarm.ask(fresh_prompt(LONG), 1))
            await asyncio.sleep(alone / 3)
            busy.append((await swarm.ask(fresh_prompt(PROMPT), 1)).ttft_seconds)
            await long
        chunk = median(chunks)
        more = (median(busy) - median(idle)) / chunk
        self._add("first token, idle", median(idle) * 1e3, "ms")
        self._add("first token beside a long prompt", median(busy) * 1e3, "ms")
        self._add("one chunk at one stage", chunk * 1e3, "ms")
        self._add("first token: more, in chunks", more, "chunks", Gate(1.5))

    async def _without_batching(self, batched: float) -> None:
        async with small_swarm(self._spec, self._folder, sessions_per_step=1) as swarm:
            await crowd(swarm, 2, 4)
            speeds = [await crowd(swarm, 16, NEW) for _ in range(max(3, self._rounds // 2))]
        gate = Gate(3.0, at_most=False) if self._name == "mid" else None
        self._add("16 clients, no batching", median(speeds), "tokens/s")
        self._add("batching / no batching", batched / median(speeds), "x", gate)

    def _add(self, name: str, value: float, unit: str, gate: Gate | None = None) -> None:
        self._report.add(self._name, name, value, unit, gate)


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Every part that was asked for."""
    rounds = options.rounds or (3 if options.quick else 5)
    if options.only in "hop":
        found = [s * 1e3 for s in await hop_seconds(200 if options.quick else 1000)]
        report.add("hop", "STEP of 16 KiB, median", median(found), "ms", Gate(0.6))
        report.add("hop", "STEP of 16 KiB, 10th percentile", sorted(found)[len(found) // 10], "ms")
    for name in ("tiny",) if options.quick else ("mid", "tiny", BUILT_IN):
        folder = model_folder(name, options.cache)
        if options.only in f"{name} f32":
            await Bench(report, name, folder, rounds).float32(large=not options.quick)
        if options.only in f"{name} int8":
            await Bench(report, name, folder, rounds).int8()


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Measure a swarm of two nodes on loopback.")
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("swarm of two nodes, one thread each")
    uvloop.run(measure(options, report))
    report.show()
    report.write(options.json)


if __name__ == "__main__":
    main()
