"""model_fields: what a cluster file says of a model, from a Hugging Face config.json."""

from collections.abc import Mapping
from typing import Any

from planner.instance.fields import Fields

BYTES_16BIT = 2
UNGATED = frozenset({"gpt2", "gpt_neox", "phi", "starcoder2"})  # MLPs of two matrices, not three
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def model_fields(config: Fields) -> dict[str, Any]:
    """The fields of a model of 16-bit weights; raises BadInput for one of experts or odd shape."""
    text = config.section("text_config") if config.has("text_config") else config
    if found := next((name for name in EXPERTS if text.has(name)), None):
        raise text.refuse(found, "makes it a mixture of experts: describe it under models")
    hidden, heads = text.count("hidden_size"), text.count("num_attention_heads")
    kv_heads = text.count("num_key_value_heads") if text.has("num_key_value_heads") else heads
    head_dim = text.count("head_dim") if text.has("head_dim") else hidden // heads
    ffn = text.count("intermediate_size")
    gated = _kind_of(text.values) not in UNGATED
    attention = 2 * hidden * head_dim * (heads + kv_heads)  # queries and output, keys and values
    return {
        "layers": text.count("num_hidden_layers"),
        "hidden": hidden,
        "kv_heads": kv_heads,
        "ffn": ffn,
        "ffn_gated": gated,
        "vocab": text.count("vocab_size"),
        "params_per_layer": attention + (3 if gated else 2) * hidden * ffn,
        "bytes_per_weight": BYTES_16BIT,
        "kv_bytes_per_token_per_layer": 2 * kv_heads * head_dim * BYTES_16BIT,
    }


def _kind_of(values: Mapping[str, Any]) -> object:
    return values.get("model_type")
