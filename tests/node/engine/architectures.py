"""The supported architectures: tiny configs with 8 KV heads and 8 MLP blocks, and their bounds."""

from typing import Any

import pytest
import torch

from swarm.checkpoint.architectures import SUPPORTED_ARCHITECTURES

TOLERANCE = 2e-5  # of the logits' scale
PER_HEAD = {"num_key_value_heads": None, "num_attention_heads": 8}
EXPERTS = {"num_experts_per_tok": 2, "intermediate_size": 1000}
MOE = {"num_experts": 4, "moe_intermediate_size": 1000, **EXPERTS}
LOCAL = {"num_local_experts": 4, **EXPERTS}
WINDOW = {"sliding_window": 8}
LATENT = PER_HEAD | {
    "num_key_value_heads": 8,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 1000,
    "intermediate_size": 700,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "attention_bias": True,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "cohere2": WINDOW,
    "deepseek_v2": LATENT | {"topk_method": "group_limited_greedy", "norm_topk_prob": True},
    "deepseek_v3": LATENT | {"rope_parameters": YARN},
    "exaone4": WINDOW,
    "gemma2": WINDOW | {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": WINDOW | {"head_dim": 8, "query_pre_attn_scalar": 8},
    "glm4": {"head_dim": 8, "attention_bias": True},
    "glm4_moe": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 1000,
        "intermediate_size": 700,
        "first_k_dense_replace": 1,
        "head_dim": 8,
        "n_group": 2,
        "topk_group": 1,
        "use_qk_norm": True,
    },
    "gpt2": PER_HEAD | {"n_inner": 1000, "intermediate_size": None},
    "gpt_neox": PER_HEAD,
    "gpt_oss": LOCAL | WINDOW | {"head_dim": 8},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "granitemoe": LOCAL | {"embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "minimax_m2": LOCAL | {"head_dim": 8},
    "ministral3": {"head_dim": 8},
    "mistral": WINDOW,
    "mixtral": LOCAL,
    "olmo3": WINDOW,
    "olmoe": {"num_experts": 4, **EXPERTS},
    "phi3": WINDOW,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2, **WINDOW},
    "qwen2_moe": MOE | {"shared_expert_intermediate_size": 700},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": MOE | {"head_dim": 8},
    "seed_oss": {"head_dim": 8},
    "starcoder2": {"use_bias": True},
}
QUICK = {
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "mixtral", "qwen3_moe",
    "gpt2", "gpt_oss", "phi3", "olmo2", "deepseek_v3",
}  # fmt: skip
CASES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in SUPPORTED_ARCHITECTURES
]
THREE_WAYS = ((0, 4, 7, 8), (0, 1, 5, 8))
TWO_WAYS = ((0, 5, 8), (0, 3, 8))
PROMPTS = {"short": 7, "long": 19}  # ids
MORE = 3  # ids decoded one by one


class Recorder:
    """Stands for the sampler: keeps the logits."""

    seen: dict[int, torch.Tensor]

    def __init__(self, *_: object, **__: object) -> None:
        self.seen = {}

    def verify(
        self, position: int, logits: torch.Tensor, drafts: tuple[int, ...]
    ) -> tuple[list[int], str]:
        """Keep the logits for `position`."""
        self.seen[position] = logits[0].clone()
        return [0], ""

    def logprobs_of(self, logits: torch.Tensor, ids: list[int]) -> bytes:
        """Tell nothing of them."""
        return b""

    def propose_drafts(self, position: int, room: int) -> list[int]:
        """Guess nothing."""
        return []
