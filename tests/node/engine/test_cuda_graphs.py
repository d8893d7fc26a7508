"""Recorded decode steps: the same tokens as computed ones, whoever comes, grows or leaves.

There is no GPU here: `rerun` stands for a CUDA graph. Like one, it runs over the buffers and fixed
shapes of its recording, and nothing else of a later step reaches it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.engine.attention.backends import BACKENDS
from node.engine.cuda_graphs import (
    GRAPHS_KEPT,
    LEAST_LIMIT,
    REPEATS,
    DecodeGraphs,
    Outputs,
    Record,
    Replay,
)
from node.engine.stage_runner import StageRunner
from swarm.wire.sampling_params import Sampling
from tests.node.engine.architectures import OPTIONS

QUICK = ["llama", "gemma2", "gpt_oss", "deepseek_v3", "gpt2"]


def rerun(run: Callable[[], Outputs]) -> tuple[Replay, Outputs]:
    outputs = tuple(each.clone() for each in run())

    def replay() -> None:
        for output, found in zip(outputs, run(), strict=True):
            output.copy_(found)

    return replay, outputs


def recording(
    stage: list[StageRunner], record: Record = rerun, backend: str = "padded"
) -> DecodeGraphs:
    (runner,) = stage
    runner.shrink(4096)  # on a CPU flex attention looks at every row of the store
    runner.forward.backend = BACKENDS[backend]
    runner.forward.graphs = DecodeGraphs(runner._stage, runner._store, runner.forward._like, record)
    return runner.forward.graphs


@pytest.mark.parametrize(
    ("architecture", "backend"),
    [*((name, "padded") for name in QUICK), ("llama", "paged"), ("gpt_oss", "paged")],
)
def test_recorded_steps_draw_the_tokens_of_computed_ones(
    architecture: str,
    backend: str,
    tmp_path: Path,
    save: Callable[..., Any],
    stage: Callable[..., Any],
    ring: Callable[..., Any],
) -> None:
    save(tmp_path, architecture, OPTIONS.get(architecture, {}))
    prompts = {"a": list(range(3, 40)), "b": [5, 9, 33], "c": list(range(60, 90))}
    options = {
        "a": Sampling(max_tokens=30),
        "b": Sampling(max_tokens=200, temperature=0.7, top_k=9, seed=1),
        "c": Sampling(max_tokens=30, repetition_penalty=1.3),
    }
    found = []
    for is_recorded in (False, True):
        stages = [stage(tmp_path, (0, 2)), stage(tmp_path, (2, 4))]
        graphs = [recording(each, rerun, backend) for each in stages] if is_recorded else []
        found.append(decode_together(ring(stages), prompts, options, 20))
        assert all(20 - REPEATS <= each.replays < 20 for each in graphs)
    assert found[0] == found[1]


def decode_together(
    stages: Any, prompts: dict[str, list[int]], options: dict[str, Sampling], steps: int
) -> dict[str, list[int]]:
    for name, prompt in prompts.items():
        stages.open(name, prompt, options[name])
    rows = dict(prompts)
    drawn: dict[str, list[int]] = {name: [] for name in prompts}
    for _ in range(steps + 1):
        for name, result in stages.step(rows, list(rows)).items():
            drawn[name].append(result.token)
            rows[name] = [result.token]
    return drawn


def test_sessions_that_outgrow_a_recording_are_recorded_anew(
    tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    save(tmp_path, "llama", {})
    prompt = [3 + number % 90 for number in range(LEAST_LIMIT - 10)]
    sampling = Sampling(max_tokens=40, temperature=1, seed=2)
    expected = ring([stage(tmp_path, (0, 4))]).generate(prompt, sampling)
    ranks = stage(tmp_path, (0, 4))
    graphs = recording(ranks)
    assert ring([ranks]).generate(prompt, sampling) == expected
    assert list(graphs._recorded) == [(1, LEAST_LIMIT), (1, 2 * LEAST_LIMIT)]
    assert graphs.replays == 39 - 2 * (REPEATS - 1)


def test_others_that_come_and_go_are_computed_until_they_stay(
    tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    save(tmp_path, "llama", {})
    sampling = Sampling(max_tokens=120)
    prompts = {f"s{number}": [5 + number, 9, 33] for number in range(GRAPHS_KEPT + 3)}
    whole, cut = ring([stage(tmp_path, (0, 4))]), ring([ranks := stage(tmp_path, (0, 4))])
    graphs = recording(ranks)
    for each in (whole, cut):
        for name, prompt in prompts.items():
            each.open(name, prompt, sampling)
    rows = dict(prompts)
    results = [each.step(rows, list(rows)) for each in (whole, cut)]
    for number in range(1, len(prompts) + 1):
        for _ in range(REPEATS + 1):
            rows = {n: [results[0][n].token] for n in prompts}
            company = dict(list(rows.items())[:number])
            found = [each.step(company, list(company)) for each in (whole, cut)]
            tokens = [{n: r.token for n, r in each.items()} for each in found]
            assert tokens[0] == tokens[1]
            results = [old | new for old, new in zip(results, found, strict=True)]
    assert graphs.replays == 2 * len(prompts)
    assert len(graphs._recorded) == GRAPHS_KEPT


def test_other_sessions_of_the_same_number_use_the_same_recording(
    tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    save(tmp_path, "llama", {})
    whole, cut = ring([stage(tmp_path, (0, 4))]), ring([ranks := stage(tmp_path, (0, 4))])
    graphs = recording(ranks)
    for number in range(3):
        prompt, sampling = [5 + number, 9, 33], Sampling(max_tokens=20)
        assert whole.generate(prompt, sampling) == cut.generate(prompt, sampling)
    assert list(graphs._recorded) == [(1, LEAST_LIMIT)]
    assert graphs.replays == 3 * 19 - (REPEATS - 1)


def test_what_cannot_be_recorded_is_computed_and_not_tried_again(
    tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    save(tmp_path, "llama", {})
    tries = []

    def refuse(run: Callable[[], Outputs]) -> tuple[Replay, Outputs]:
        tries.append(run())
        raise RuntimeError("operation not permitted when stream is capturing")

    prompt, sampling = [5, 9, 33], Sampling(max_tokens=20)
    ranks = stage(tmp_path, (0, 4))
    graphs = recording(ranks, refuse)
    expected = ring([stage(tmp_path, (0, 4))]).generate(prompt, sampling)
    assert ring([ranks]).generate(prompt, sampling) == expected
    assert graphs.is_broken
    assert (len(tries), graphs.replays) == (1, 0)


def test_chunks_of_prompts_are_never_recorded(
    tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    save(tmp_path, "llama", {})
    ranks = stage(tmp_path, (0, 4))
    graphs, one = recording(ranks), ring([ranks])
    one.open("s", list(range(3, 50)), Sampling())
    for at in range(3, 50, 4):
        one.step({"s": list(range(at, at + 4))})
    assert graphs.replays == 0
    assert not graphs._recorded
