"""A vocabulary cut into parts: the same logits, the same tokens, little sent, little held."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from node.engine import stage_runner
from node.engine.parallel.allreduce import LocalReducer
from node.engine.parallel.vocab_parallel import MOST_MERGED, WHOLE, Vocabulary, candidates_of
from node.engine.sampler import Sampler
from node.engine.shard_io import StageSpec, StepItem
from swarm.errors import EngineError
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
from tests.node.engine.conftest import step_together

THREE_PARTS, TWO_PARTS = (0, 17, 80, 96), (0, 61, 96)  # of the tiny models' 96 ids
PROMPT = [5, 9, 33, 4, 71, 12, 5, 9, 33]
SAMPLINGS = [
    Sampling(),
    Sampling(repetition_penalty=1.7),
    Sampling(presence_penalty=1.7),
    Sampling(top_logprobs=2),
    Sampling(frequency_penalty=-2.0),
    Sampling(logit_bias=((3, 1.0), (95, 1.0)), frequency_penalty=0.5),
    Sampling(temperature=0.8, seed=3),
    Sampling(temperature=0.8, top_k=5, seed=3),
    Sampling(temperature=1.3, top_k=5, top_p=0.7, min_p=0.05, seed=3),
    Sampling(temperature=1.3, top_k=60, seed=3),
    Sampling(temperature=0.8, top_p=0.8, seed=3),
    Sampling(temperature=0.8, top_k=5, repetition_penalty=1.3, seed=3),
]


@pytest.mark.parametrize("architecture", CASES)
def test_cut_ends_have_the_logits_of_the_whole(
    architecture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save: Callable[..., Any],
    stage: Callable[..., Any],
    ring: Callable[..., Any],
) -> None:
    monkeypatch.setattr(stage_runner, "Sampler", Recorder)
    whole = save(tmp_path, architecture, OPTIONS.get(architecture, {}))
    stages = ring(
        [
            stage(tmp_path, (0, 2), THREE_WAYS, vocab_bounds=THREE_PARTS),
            stage(tmp_path, (2, 4), TWO_WAYS, vocab_bounds=TWO_PARTS),
        ]
    )
    torch.manual_seed(1)
    ids = {name: torch.randint(3, 96, (n + MORE,)).tolist() for name, n in PROMPTS.items()}
    for name in ids:
        stages.open(name, ids[name], Sampling(temperature=1))
    stages.step({name: ids[name][:n] for name, n in PROMPTS.items()}, list(ids))
    for at in range(MORE):
        stages.step({name: [ids[name][n + at]] for name, n in PROMPTS.items()}, list(ids))
    for name, n in PROMPTS.items():
        with torch.inference_mode():
            expected = whole(torch.tensor([ids[name]]), use_cache=False).logits[0]
        seen = stages.stages[-1][0]._samplers[name].seen
        assert sorted(seen) == list(range(n, n + MORE + 1))
        for position, logits in seen.items():
            scale = float(expected.abs().max())
            assert float((logits - expected[position - 1]).abs().max()) <= TOLERANCE * scale


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)])
def rings(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    save: Callable[..., Any],
    stage: Callable[..., Any],
    ring: Callable[..., Any],
) -> tuple[Any, Any, Any]:
    """One model in rings of whole ends, of cut ones, and of cut ones in two stages."""
    folder = tmp_path_factory.mktemp("cut")
    save(folder, "llama", {"tie_word_embeddings": request.param})
    whole = ring([stage(folder, (0, 4), TWO_WAYS)])
    alone = ring([stage(folder, (0, 4), TWO_WAYS, vocab_bounds=TWO_PARTS)])
    chain = ring(
        [
            stage(folder, (0, 1), TWO_WAYS, vocab_bounds=TWO_PARTS),
            stage(folder, (1, 4), TWO_WAYS, vocab_bounds=TWO_PARTS),
        ]
    )
    return whole, alone, chain


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_cut_ends_draw_the_tokens_of_the_whole(
    sampling: Sampling, rings: tuple[Any, Any, Any]
) -> None:
    whole, alone, chain = rings
    expected = whole.generate(PROMPT, sampling)
    assert len(set(expected[0])) > 1
    assert alone.generate(PROMPT, sampling) == expected
    assert chain.generate(PROMPT, sampling) == expected


def test_guesses_are_checked_against_every_part(
    tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any], ring: Callable[..., Any]
) -> None:
    save(tmp_path, "llama", {})
    sampling = Sampling(max_tokens=6, temperature=0.8, top_k=5, seed=3)
    first, *rest = ring([stage(tmp_path, (0, 4))]).generate(PROMPT, sampling)[0]
    drafts = (*rest[:2], (rest[2] + 1) % 96)
    ranks = stage(tmp_path, (0, 4), TWO_WAYS, vocab_bounds=TWO_PARTS)
    cut = ring([ranks])
    cut.open("s", PROMPT, sampling)
    assert cut.step({"s": PROMPT}, ["s"])["s"].token == first
    rows = torch.tensor([first, *drafts])
    result = step_together(ranks, [StepItem("s", len(PROMPT), rows, sample=True, drafts=drafts)])
    assert result[0].ids == tuple(rest[:3])


@pytest.mark.parametrize("tied", [False, True])
def test_a_rank_reads_and_holds_its_part_of_the_ends(
    tied: bool, tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any]
) -> None:
    save(tmp_path, "llama", {"tie_word_embeddings": tied})
    bounds = ((0, 4, 8), (0, 4, 8))
    ranks = stage(tmp_path, (0, 4), bounds, vocab_bounds=TWO_PARTS)
    row = 64 * 4 * (1 if tied else 2)  # bytes of one id in embedding and head
    larger, smaller = (rank.weight_bytes for rank in ranks)
    width = 64 * 4 * 3 * (128 - 104)  # both hold 4 MLP blocks; the last block is short
    assert larger - smaller == row * (61 - 35) + 4 * width
    assert all(rank.bytes_read <= 1.01 * rank.weight_bytes for rank in ranks)


@pytest.mark.parametrize("bounds", [(0, 61, 97), (0, 60, 95)])
def test_bounds_must_end_at_the_vocabulary(
    bounds: tuple[int, ...], tmp_path: Path, save: Callable[..., Any], stage: Callable[..., Any]
) -> None:
    save(tmp_path, "llama", {})
    with pytest.raises(EngineError, match="96 ids"):
        stage(tmp_path, (0, 4), TWO_WAYS, vocab_bounds=bounds)


@pytest.mark.parametrize("bounds", [(0, 96), (0, 0, 96), (0, 96, 96), (0, 50, 20), (0, 1, 2, 96)])
def test_every_rank_must_get_a_part(bounds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="vocabulary bounds"):
        StageSpec(Path(), 0, 4, 0, *TWO_WAYS, vocab_bounds=bounds)


# ---------------------------------------------------------------- merging


class Counting:
    """Counts the values that a group sums."""

    def __init__(self, inner: LocalReducer) -> None:
        self._inner, self.values = inner, 0

    def __call__(self, partial: torch.Tensor) -> torch.Tensor:
        self.values += partial.numel()
        return self._inner.all_reduce(partial)


def merged(
    logits: torch.Tensor, bounds: tuple[int, ...], wanted: list[int]
) -> tuple[torch.Tensor, int]:
    """What rank 0 gets from ranks that hold parts of `logits`, and how many values were summed."""
    reducers = [Counting(each) for each in LocalReducer.group(len(bounds) - 1)]

    def run(rank: int) -> torch.Tensor:
        part = Vocabulary(bounds, rank)
        part._reduce = reducers[rank]
        return part.merge(logits[:, bounds[rank] : bounds[rank + 1]], wanted)

    with ThreadPoolExecutor(len(reducers)) as pool:
        found = list(pool.map(run, range(len(reducers))))
    assert all(torch.equal(each.nan_to_num(), found[0].nan_to_num()) for each in found)
    return found[0], reducers[0].values


@settings(max_examples=60, deadline=None)
@given(some.data())
def test_samplers_draw_from_merged_logits_what_they_draw_from_all(data: some.DataObject) -> None:
    torch.manual_seed(data.draw(some.integers(0, 1000)))
    levels = data.draw(some.sampled_from([2, 5, 1000]))  # few levels: many ties
    logits = torch.randint(0, levels, (len(SAMPLINGS), 96)) / 3.0 - 7
    bounds = data.draw(some.sampled_from([TWO_PARTS, THREE_PARTS, (0, 2, 5, 90, 96)]))
    found, _ = merged(logits, bounds, [candidates_of(each) for each in SAMPLINGS])
    for sampling, mine, all_of in zip(SAMPLINGS, found, logits, strict=True):
        ids = [sampler_of(sampling).next(len(PROMPT), row)[0] for row in (mine, all_of)]
        assert ids[0] == ids[1]


def sampler_of(sampling: Sampling) -> Sampler:
    return Sampler(sampling, PROMPT, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_a_session_with_strange_logits_fails_alone(bad: float, sampling: Sampling) -> None:
    logits = torch.randn(2, 96)
    logits[0, 70] = bad
    found, _ = merged(logits, THREE_PARTS, [candidates_of(sampling)] * 2)
    with pytest.raises(EngineError, match="finite"):
        sampler_of(sampling).next(len(PROMPT), found[0])
    best = sampler_of(sampling).next(len(PROMPT), logits[1])
    assert sampler_of(sampling).next(len(PROMPT), found[1]) == best


def test_little_is_sent_where_little_is_needed() -> None:
    logits = torch.randn(4, 32_000)
    bounds = (0, 20_000, 32_000)
    assert merged(logits, bounds, [1] * 4)[1] == 4 * 2 * 3
    assert merged(logits, bounds, [40] * 4)[1] == 4 * 2 * 81
    assert merged(logits, bounds, [1, 1, 1, WHOLE])[1] == 3 * 2 * 3 + 32_000
    assert merged(logits, bounds, [MOST_MERGED + 1] * 4)[1] == 4 * 32_000
