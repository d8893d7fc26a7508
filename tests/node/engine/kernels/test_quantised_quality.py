"""int8 on real text: swarm-tiny understands the held-out corpus as well as in float32."""

import math
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from node.engine.kernels.int8_linear import quantise_layer
from node.engine.shard_io import StageSpec
from node.engine.stage_runner import StageRunner
from node.engine.throughput import bytes_per_weight
from swarm.checkpoint.folder import find_model
from swarm.model_spec import BUILT_IN

FOLDER = find_model(BUILT_IN)
HELDOUT = Path(__file__).parents[4] / "scripts" / "corpus" / "heldout.txt"


@torch.inference_mode()
def perplexities(model: Any, lines: list[torch.Tensor]) -> list[float]:
    """Of each line by itself: what a text is worth does not depend on its neighbours."""
    found = []
    for ids in lines:
        logits = model(ids[None]).logits[0, :-1]
        found.append(math.exp(float(functional.cross_entropy(logits, ids[1:]))))
    return found


def test_perplexity_of_held_out_text_is_within_two_percent() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
    texts = HELDOUT.read_text(encoding="utf-8").splitlines()
    lines = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts if text]
    assert len(lines) >= 20
    model: Any = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    whole = perplexities(model, lines)
    for layer in model.model.layers:
        quantise_layer(layer)
    small = perplexities(model, lines)
    ratios = [after / before for before, after in zip(whole, small, strict=True)]
    assert max(abs(ratio - 1) for ratio in ratios) < 0.02
    assert math.prod(small) < math.prod(whole) * 1.02 ** len(lines)


def test_the_weight_width_that_is_advertised_covers_what_a_shard_takes() -> None:
    width = bytes_per_weight(FOLDER, "int8")
    assert bytes_per_weight(FOLDER, "") == 4.0
    assert 1.0 < width < 1.25
    for bounds in ((0, 8), (0, 5, 8)):  # heads of 12 values: a lone one stays as it is
        for rank in range(len(bounds) - 1):
            taken = _layer_bytes(bounds, rank, "int8")
            held = _layer_bytes(bounds, rank, "") / 4
            assert taken <= held * width


def _layer_bytes(bounds: tuple[int, ...], rank: int, quant: str) -> int:
    spec = StageSpec(FOLDER, 3, 5, rank, bounds, bounds, quant=quant)
    reducer: Any = None if len(bounds) == 2 else _NoReducer()
    return StageRunner.load(spec, budget_bytes=1 << 25, reducer=reducer).weight_bytes


class _NoReducer:
    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        return partial
