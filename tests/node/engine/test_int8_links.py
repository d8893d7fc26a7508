"""Int8 links on real text: staged swarm-tiny understands it nearly as well as over exact links."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoTokenizer

from node.engine import stage_runner
from node.engine.shard_io import StageSpec, StepItem
from node.engine.stage_runner import StageRunner
from swarm.checkpoint.folder import find_model
from swarm.model_spec import BUILT_IN
from swarm.wire.sampling_params import MOST_SPECULATED
from swarm.wire.tensor_codec import rows_of_bytes, rows_to_bytes

FOLDER = find_model(BUILT_IN)
HELDOUT = Path(__file__).parents[3] / "scripts" / "corpus" / "heldout.txt"
SPANS = ((0, 2), (2, 4), (4, 6), (6, 8))  # three links
BUDGET = 1 << 25  # bytes
PIECE = MOST_SPECULATED + 1  # rows of which one step makes logits


class Witness:
    """Stands for the sampler: keeps the logits of every row."""

    def __init__(self, *_options: object, **_more: object) -> None:
        self.logits = torch.empty(0)  # [tokens, vocab]

    def verify(
        self, _first: int, logits: torch.Tensor, _drafts: Sequence[int]
    ) -> tuple[list[int], str]:
        self.logits = logits
        return [0], "stop"

    def logprobs_of(self, _logits: torch.Tensor, _ids: Sequence[int]) -> bytes:
        return b""


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[StageRunner]:
    monkeypatch.setattr(stage_runner, "Sampler", Witness)
    specs = [StageSpec(FOLDER, *span, 0, (0, 8), (0, 8)) for span in SPANS]
    return [StageRunner.load(spec, budget_bytes=BUDGET) for spec in specs]


@cache
def lines() -> list[list[int]]:
    tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
    texts = HELDOUT.read_text(encoding="utf-8").splitlines()
    return [tokenizer(text)["input_ids"] for text in texts if text]


def logits_of(stages: list[StageRunner], ids: list[int], *, narrow: bool) -> torch.Tensor:
    """Logits [tokens, vocab] of a line whose rows cross every link as bytes."""
    for stage in stages:
        stage.open("line", capacity=len(ids))
    witness: Any = stages[-1]._samplers["line"]
    found = []
    for at in range(0, len(ids), PIECE):
        _run_piece(stages, ids[at : at + PIECE], at, narrow=narrow)
        found.append(witness.logits.clone())
    for stage in stages:
        stage.close("line")
    logits = torch.cat(found)
    assert len(logits) == len(ids)
    return logits


def _run_piece(stages: list[StageRunner], ids: list[int], position: int, *, narrow: bool) -> None:
    """Run ids as guesses, since the last stage makes logits of all of these."""
    rows = torch.tensor(ids)
    for stage in stages:
        (result,) = stage.step([StepItem("line", position, rows, True, tuple(ids[1:]))])
        assert result.error is None
        if result.rows is not None:
            name, body = rows_to_bytes(result.rows, narrow=narrow)
            assert name == ("i8" if narrow else "f32")
            rows = rows_of_bytes(name, body, len(ids))


def perplexity(logits: torch.Tensor, ids: list[int]) -> float:
    return math.exp(float(functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))))


def test_three_int8_links_leave_held_out_text_as_it_is(stages: list[StageRunner]) -> None:
    assert len(lines()) >= 20
    ratios, errors, same, tokens = [], [], 0, 0
    for ids in lines():
        exact = logits_of(stages, ids, narrow=False)
        near = logits_of(stages, ids, narrow=True)
        errors.append(float((near - exact).abs().max() / exact.abs().max()))
        ratios.append(perplexity(near, ids) / perplexity(exact, ids))
        same += int((near.argmax(1) == exact.argmax(1)).sum())
        tokens += len(ids)
    assert min(errors) > 0
    assert max(errors) < 0.03  # of the largest logit; measured 0.013
    assert max(abs(ratio - 1) for ratio in ratios) < 0.005  # measured 0.0013
    assert same >= 0.99 * tokens  # measured: all of 3,777
