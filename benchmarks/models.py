"""Models to measure with: random Llamas, written once into a cache folder, and swarm-tiny."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from swarm.checkpoint.folder import find_model
from swarm.model_spec import BUILT_IN

SHAPES: dict[str, dict[str, Any]] = {
    "mid": {
        "hidden_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 2816,
        "vocab_size": 8192,
    },
    "large": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1024,
        "vocab_size": 1024,
    },
}


def model_folder(name: str, cache: Path) -> Path:
    """The folder of a shape or of "swarm-tiny"; writes a random model the first time."""
    if name == BUILT_IN:
        return find_model(name)
    folder = cache / name
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            **SHAPES[name],
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def prompt_ids(count: int, seed: int = 0) -> list[int]:
    """Ids that every model knows."""
    generator = torch.Generator().manual_seed(seed)
    return [int(each) for each in torch.randint(3, 256, (count,), generator=generator)]


def references(folder: Path, prompts: int, count: int, tokens: int) -> dict[int, list[int]]:
    """The greedy continuations of `prompt_ids(count, seed)` for so many seeds, by transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = {}
    for seed in range(prompts):
        ids = torch.tensor([prompt_ids(count, seed)])
        mask = torch.ones_like(ids)
        whole = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
        found[seed] = [int(each) for each in whole[0, count:]]
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that both benchmarks have."""
    default = Path(tempfile.gettempdir()) / "swarm-bench"
    parser.add_argument("--cache", type=Path, default=default, help="where random models are kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here too")
    parser.add_argument("--quick", action="store_true", help="small models only, few rounds")
    parser.add_argument("--rounds", type=int, default=0, help="how often each figure is taken")
    parser.add_argument("--only", default="", metavar="WORDS", help="parts whose name has a word")
