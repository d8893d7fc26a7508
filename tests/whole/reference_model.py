"""The reference model, whole in this process: what every swarm must answer, token by token."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from swarm.checkpoint.folder import find_model
from swarm.model_spec import BUILT_IN

TINY = find_model(BUILT_IN)


@cache
def _model(folder: Path, dtype: torch.dtype) -> Any:
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=dtype).eval()


@cache
def tokenizer_of(folder: Path = TINY) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def ids_of(text: str, folder: Path = TINY) -> list[int]:
    """The ids of a prompt, as the client makes them."""
    ids: list[int] = tokenizer_of(folder)(text)["input_ids"]
    return ids


def expected(
    prompt: str,
    max_tokens: int,
    folder: Path = TINY,
    *,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> list[int]:
    """The new ids of transformers' own generate: greedy without a seed."""
    ids = torch.tensor([ids_of(prompt, folder)])
    sampling: dict[str, Any] = {"do_sample": False}
    if seed is not None:
        torch.manual_seed(seed)
        sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        whole = _model(folder, dtype).generate(
            ids, attention_mask=mask, max_new_tokens=max_tokens, **(sampling | options)
        )
    return [int(token) for token in whole[0, ids.shape[1] :]]


def text_of(ids: Sequence[int], folder: Path = TINY) -> str:
    text: str = tokenizer_of(folder).decode(ids, skip_special_tokens=True)
    return text
