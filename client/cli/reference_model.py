"""Reference model: the same model whole, here and by transformers alone, to compare with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from client.request import Request
from swarm.checkpoint.folder import find_model
from swarm.model_spec import BUILT_IN


def generate_reference(name: str, request: Request) -> list[int]:
    """The new ids that transformers' own `generate` gives, greedily and in float32; blocks."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    whole = find_model(name) if name == BUILT_IN or Path(name).is_dir() else name
    model: Any = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    ids = torch.tensor([request.ids])  # [1, prompt]
    with torch.inference_mode():
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.sampling.max_tokens,
            do_sample=False,
        )
    return [int(token) for token in whole[0, len(request.ids) :]]


def matching(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids agree from the start on."""
    pairs = zip(one, other, strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
