"""Architectures: which we support, what their tensors are called, and what their configs say."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it loads torch
    from transformers import PretrainedConfig

# Exactly what tests/node/engine/test_conformance.py proves: staged and unevenly sharded == whole.
SUPPORTED_ARCHITECTURES: tuple[str, ...] = (
    "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "gemma2", "gemma3_text",
    "glm4", "glm4_moe", "gpt2", "gpt_neox", "gpt_oss", "granite", "granitemoe", "llama",
    "minimax_m2", "ministral3", "mistral", "mixtral", "olmo2", "olmo3", "olmoe", "phi", "phi3",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2",
)  # fmt: skip

ATTENTION_NAMES = {"self_attn", "attn", "attention"}  # a layer's child that is its attention
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight")


def is_attention(name: str) -> bool:
    """Whether a parameter's or module's dotted name lies in a layer's attention."""
    return not ATTENTION_NAMES.isdisjoint(name.split("."))


def kv_heads_of(config: "PretrainedConfig") -> int:
    """How many units attention is cut into: KV heads, or heads where there is no grouping."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def experts_of(config: "PretrainedConfig") -> int:
    """How many routed experts a layer has; 0 for a dense model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((int(count) for name in names if (count := getattr(config, name, None))), 0)


def ffn_of(config: "PretrainedConfig") -> int:
    """FFN columns that the split counts: those of one expert where there are experts."""
    columns = getattr(config, "moe_intermediate_size", None) if experts_of(config) else None
    columns = columns or getattr(config, "intermediate_size", None)
    return int(columns or getattr(config, "n_inner", None) or 4 * config.hidden_size)


def head_dims_of(config: "PretrainedConfig") -> tuple[int, int]:
    """Widths of one head's keys and of its values, which differ in latent attention."""
    if getattr(config, "kv_lora_rank", None):
        if config.num_key_value_heads != config.num_attention_heads:
            raise ValueError("latent attention with fewer KV heads than heads is not supported")
        return int(config.qk_nope_head_dim) + int(config.qk_rope_head_dim), int(config.v_head_dim)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(width), int(width)


def context_of(config: "PretrainedConfig") -> int:
    """Most tokens of a session: beyond them positions mean nothing, or change for everybody."""
    rope = getattr(config, "rope_parameters", None) or {}
    most = int(config.max_position_embeddings)
    if rope.get("rope_type") in ("longrope", "dynamic"):  # they rescale all positions above it
        return int(rope.get("original_max_position_embeddings") or most)
    if rope.get("rope_type") == "yarn":  # whose config may name the context before the scaling
        before = float(rope.get("original_max_position_embeddings") or 0)
        return max(most, int(float(rope.get("factor") or 1) * before))
    return most
