"""A checkpoint on disk: find it by name, read its dimensions and tensor headers; no torch."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig

from swarm.errors import BadModel
from swarm.headers import TensorHeader, read_headers, read_json
from swarm.hub import open_on_hub
from swarm.model import BUILT_IN, ModelSpec
from swarm.store import Store

# Exactly what tests/node/engine/test_conformance.py proves: staged and unevenly sharded == uncut.
SUPPORTED_ARCHITECTURES: tuple[str, ...] = (
    "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "gemma2", "gemma3_text",
    "glm4", "glm4_moe", "gpt2", "gpt_neox", "gpt_oss", "granite", "granitemoe", "llama",
    "minimax_m2", "ministral3", "mistral", "mixtral", "olmo2", "olmo3", "olmoe", "phi", "phi3",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2",
)  # fmt: skip

UNREADABLE = (  # what transformers raises for a config with values that cannot be
    ArithmeticError, AttributeError, KeyError, OSError, StrictDataclassError, TypeError, ValueError,
)  # fmt: skip
ATTENTION_NAMES = {"self_attn", "attn", "attention"}  # a layer's child that is its attention
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")


def find_model(name: str, *, revision: str = "") -> Path:
    """Return the folder of a model; weights of the hub are in it as headers only, see `Store`.

    Raises BadModel, Unreachable.
    """
    return open_model(name, revision=revision)[0]


def open_model(name: str, *, revision: str = "") -> tuple[Path, Store | None]:
    """Return the folder of a built-in model, a folder or a hub id, and what fills it if it is thin.

    Raises BadModel, Unreachable.
    """
    if name == BUILT_IN:
        return Path(__file__).parent / "models" / BUILT_IN, None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder, None
    if not is_hub_id(name):
        raise BadModel(f"There is no folder {name}.", "Give a folder, a hub id or swarm-tiny.")
    return open_on_hub(name, revision)


def is_hub_id(name: str) -> bool:
    """Whether a name that is no folder may be one of the hub."""
    return name != BUILT_IN and not name.startswith((".", "/", "~")) and name.count("/") <= 1


def read_spec(folder: Path, name: str) -> ModelSpec:
    """Return the dimensions and digest of the checkpoint in `folder`; raises BadModel."""
    raw = read_config(folder)
    config = load_config(folder)
    headers = read_headers(folder)
    try:
        return _spec_of(name, raw, config, headers)
    except UNREADABLE as error:
        raise BadModel(f"config.json of {folder} is not valid: {error}.", "Repair it.") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json as a map; raises BadModel if it is absent, broken or unsupported."""
    path = folder / "config.json"
    if not path.is_file():
        raise BadModel(f"{folder} has no config.json.", "Name a folder with a Hugging Face model.")
    raw = read_json(path)
    architecture = raw.get("model_type")
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise BadModel(
            f"The architecture {str(architecture)[:40]!r} is not supported.",
            f"Supported are {', '.join(sorted(SUPPORTED_ARCHITECTURES))}.",
        )
    if raw.get("quantization_config"):
        raise BadModel(
            f"The weights in {folder} are quantised.", "Name the model's original f32/bf16 weights."
        )
    return raw


def load_config(folder: Path) -> PretrainedConfig:
    """Return the transformers config of a supported model; raises BadModel."""
    read_config(folder)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder)
    except UNREADABLE as error:
        cause = " ".join(str(error).split())
        raise BadModel(f"config.json of {folder} is not valid: {cause}.", "Repair it.") from error
    return config


def digest_of(raw: dict[str, Any], headers: list[TensorHeader]) -> str:
    """SHA-256, in hex, over the canonical config and the tensors' names, dtypes and shapes."""
    tensors = [[header.name, header.dtype, list(header.shape)] for header in headers]
    text = json.dumps([raw, tensors], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def kv_heads_of(config: PretrainedConfig) -> int:
    """How many units attention is cut into: KV heads, or heads where there is no grouping."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def experts_of(config: PretrainedConfig) -> int:
    """How many routed experts a layer has; 0 for a dense model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((int(count) for name in names if (count := getattr(config, name, None))), 0)


def ffn_of(config: PretrainedConfig) -> int:
    """FFN columns that the split counts: those of one expert where there are experts."""
    columns = getattr(config, "moe_intermediate_size", None) if experts_of(config) else None
    columns = columns or getattr(config, "intermediate_size", None)
    return int(columns or getattr(config, "n_inner", None) or 4 * config.hidden_size)


def head_dims_of(config: PretrainedConfig) -> tuple[int, int]:
    """Widths of one head's keys and of its values, which differ in latent attention."""
    if getattr(config, "kv_lora_rank", None):
        if config.num_key_value_heads != config.num_attention_heads:
            raise ValueError("latent attention with fewer KV heads than heads is not supported")
        return int(config.qk_nope_head_dim) + int(config.qk_rope_head_dim), int(config.v_head_dim)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(width), int(width)


def is_attention(name: str) -> bool:
    """Whether a parameter's or module's dotted name lies in a layer's attention."""
    return not ATTENTION_NAMES.isdisjoint(name.split("."))


def _spec_of(
    name: str, raw: dict[str, Any], config: PretrainedConfig, headers: list[TensorHeader]
) -> ModelSpec:
    attention, rest = _layer_parameters(headers, int(config.num_hidden_layers))
    heads = int(config.num_attention_heads)
    hidden = int(config.hidden_size)
    return ModelSpec(
        name=name,
        digest=digest_of(raw, headers),
        architecture=str(raw["model_type"]),
        layers=int(config.num_hidden_layers),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads_of(config),
        head_dim=-(-sum(head_dims_of(config)) // 2),  # what a head's keys and values take
        ffn=ffn_of(config),
        vocab=int(config.vocab_size),
        context=context_of(config),
        attention_parameters=attention,
        mlp_parameters=rest,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        experts=experts_of(config),
    )


def context_of(config: PretrainedConfig) -> int:
    """Most tokens of a session: beyond them positions mean nothing, or change for everybody."""
    rope = getattr(config, "rope_parameters", None) or {}
    most = int(config.max_position_embeddings)
    if rope.get("rope_type") in ("longrope", "dynamic"):  # they rescale all positions above it
        return int(rope.get("original_max_position_embeddings") or most)
    return most


def _layer_parameters(headers: list[TensorHeader], layers: int) -> tuple[int, int]:
    counts: dict[str, list[int]] = {}
    for header in headers:
        match = LAYER.search(header.name)
        # layers beyond the last one draft tokens: we never load them
        if match and int(match[1]) < layers and not _is_buffer(header):
            layer = counts.setdefault(match[1], [0, 0])
            layer[0 if is_attention(match[2]) else 1] += header.parameters
    if not counts:
        raise BadModel("The checkpoint's tensors belong to no layer.", "Name another model.")
    return max(layer[0] for layer in counts.values()), max(layer[1] for layer in counts.values())


def _is_buffer(header: TensorHeader) -> bool:
    # gpt2 and gpt_neox checkpoints of old keep their causal masks and rotary tables
    return len(header.shape) > 3 or header.name.endswith(("inv_freq", "masked_bias"))
