"""What ranks of one machine cost: `python -m benchmarks.ranks [--quick] [--json FILE]`.

Two processes, one thread each, joined as the worker joins them: TLS over TCP, then memory.
"""

import argparse
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.models import add_options, model_folder, prompt_ids
from benchmarks.report import Report, median_seconds
from node.engine.parallel.allreduce import Reducer
from node.engine.shard_io import StageSpec, StepItem
from node.engine.stage_runner import StageRunner
from node.worker.group_sockets import GroupListener
from node.worker.local_group import join_group
from node.worker.messages import Rank
from swarm.checkpoint.folder import read_spec

HOST = "127.0.0.1"
SIZES = {"4 KiB": 4 << 10, "16 KiB": 16 << 10, "64 KiB": 64 << 10, "1 MiB": 1 << 20}
WAYS = {"TLS": False, "memory": True}
CONTEXT = 96  # rows that every decoding session has
Work = Callable[[int, Reducer | None], list[float]]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Measure ranks of one machine.")
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("two ranks of one machine, one thread each")
    rounds = options.rounds or (5 if options.quick else 15)
    if options.only in "all-reduce":
        measure_sums(report, rounds)
    for name in ("tiny",) if options.quick else ("tiny", "mid"):
        if options.only in name:
            measure_model(report, name, model_folder(name, options.cache), rounds)
    report.show()
    report.write(options.json)


def measure_sums(report: Report, rounds: int) -> None:
    """All-reduce of some sizes, over either way."""
    for way, near in WAYS.items():
        found = together(Sums(rounds * 40), near=near)
        for size, seconds in zip(SIZES, found, strict=True):
            report.add("all-reduce", f"{size}, {way}", seconds * 1e6, "us")


def measure_model(report: Report, name: str, folder: Path, rounds: int) -> None:
    """Decode steps of 1 and 16 sessions on two ranks with half of every layer each, and on one."""
    decode = Decode(folder, rounds)
    alone = decode(0, None)
    for way, near in WAYS.items():
        found = together(decode, near=near)
        for sessions, one, two in zip((1, 16), alone, found, strict=True):
            report.add(name, f"decode {sessions}, 2 ranks / 1, {way}", two / one, "x time")


class Sums:
    """Median seconds of an all-reduce of each size."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def __call__(self, rank: int, reducer: Reducer | None) -> list[float]:
        """Measure as one rank."""
        assert reducer is not None
        return [self._seconds(reducer, torch.ones(size // 4)) for size in SIZES.values()]

    @torch.inference_mode()
    def _seconds(self, reducer: Reducer, partial: torch.Tensor) -> float:
        return median_seconds(lambda: reducer.all_reduce(partial), self._rounds)


class Decode:
    """Median seconds of a decode step with 1 and 16 sessions."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self._folder, self._rounds = folder, rounds

    def __call__(self, rank: int, reducer: Reducer | None) -> list[float]:
        """Measure as one rank of two, or alone."""
        runner = StageRunner.load(
            self._spec(rank, 2 if reducer else 1), budget_bytes=2 << 30, reducer=reducer
        )
        return [self._seconds(runner, sessions) for sessions in (1, 16)]

    def _spec(self, rank: int, ranks: int) -> StageSpec:
        spec = read_spec(self._folder, self._folder.name)
        kv = tuple(spec.kv_heads * each // ranks for each in range(ranks + 1))
        mlp = tuple(spec.mlp_blocks * each // ranks for each in range(ranks + 1))
        return StageSpec(self._folder, 0, spec.layers, rank, kv, mlp)

    def _seconds(self, runner: StageRunner, sessions: int) -> float:
        ids = torch.tensor(prompt_ids(CONTEXT))
        names = [f"s{number}" for number in range(sessions)]
        for name in names:
            runner.open(name, capacity=CONTEXT + 64)
            runner.step([StepItem(name, 0, ids)])
        items = [StepItem(name, CONTEXT - 1, ids[-1:]) for name in names]
        seconds = median_seconds(lambda: runner.step(items), self._rounds)
        for name in names:
            runner.close(name)
        return seconds


def together(work: Work, *, near: bool) -> list[float]:
    """Run `work` in two processes that are joined as ranks; returns what rank 0 found."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=as_rank, args=(work, 1, theirs, near))
    other.start()
    found = as_rank(work, 0, ours, near)
    other.join()
    return found


def as_rank(work: Work, rank: int, other: Connection, near: bool) -> list[float]:
    """Tell the other rank where we listen, join it, work."""
    torch.set_num_threads(1)
    listener = GroupListener(HOST)
    other.send(Rank((HOST,), listener.port, listener.certificate))
    doors = {rank: Rank((HOST,), listener.port, listener.certificate), 1 - rank: other.recv()}
    sockets = listener.connect([doors[0], doors[1]], rank)
    link, reducer = join_group(sockets, rank, near=near)
    found = work(rank, reducer)
    link.close()
    listener.close()
    return found


if __name__ == "__main__":
    main()
