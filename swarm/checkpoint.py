"""A checkpoint on disk: find it by name, read its dimensions and tensor headers; no torch."""

import hashlib
import json
import logging
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from transformers import AutoConfig, PretrainedConfig

from swarm.errors import BadModel
from swarm.model import BUILT_IN, ModelSpec

logger = logging.getLogger(__name__)

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
FILES = ("config.json", "generation_config.json", "tokenizer*", "*.model", "vocab.*")
MORE_FILES = ("merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
HEADER_CAP = 100 * 1024 * 1024  # bytes; the safetensors format's own limit
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor of a checkpoint as its file's header describes it."""

    name: str
    file: Path
    dtype: str  # of safetensors: "F32", "BF16", ...
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)


def find_model(name: str, *, revision: str = "") -> Path:
    """Return the folder of a built-in model, a folder or a hub id; raises BadModel."""
    if name == BUILT_IN:
        return Path(__file__).parent / "models" / BUILT_IN
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BadModel(f"There is no folder {name}.", "Give a folder, a hub id or swarm-tiny.")
    return _download(name, revision)


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
    raw = _read_json(path)
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


def read_headers(folder: Path) -> list[TensorHeader]:
    """Return every tensor of the checkpoint, sorted by name; raises BadModel."""
    headers = [header for path in _weight_files(folder) for header in _headers_of(path)]
    return sorted(headers, key=lambda header: header.name)


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
        context=_context_of(config),
        attention_parameters=attention,
        mlp_parameters=rest,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        experts=experts_of(config),
    )


def _context_of(config: PretrainedConfig) -> int:
    rope = getattr(config, "rope_parameters", None) or {}
    most = int(config.max_position_embeddings)
    if rope.get("rope_type") in ("longrope", "dynamic"):  # they rescale all positions above it
        return int(rope.get("original_max_position_embeddings") or most)
    return most


def _download(name: str, revision: str) -> Path:
    patterns = [*FILES, *MORE_FILES, *WEIGHT_FILES]
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise BadModel(
            f"The model {name!r} is neither built in, nor a folder, nor found on the hub.",
            "Check the name; a private model needs HF_TOKEN.",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise BadModel(
            f"The model {name!r} is neither built in, nor a folder, nor downloaded already, and the"
            " hub cannot be reached.",
            "Name a folder, connect to the network, or unset HF_HUB_OFFLINE.",
        ) from error
    logger.info("found %s in %s", name, folder)
    return folder


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = _read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise BadModel(f"{index} has no weight_map.", "Download the model again.")
        files = sorted({folder / Path(str(name)).name for name in names.values()})
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        cause = "only pickled weights (.bin)" if pickles else "no safetensors weights"
        raise BadModel(f"{folder} has {cause}.", "Convert the model to safetensors.")
    return files


def _headers_of(path: Path) -> Iterator[TensorHeader]:
    header = _read_header(path)
    header.pop("__metadata__", None)
    for name, facts in header.items():
        try:
            shape = tuple(int(size) for size in facts["shape"])
            yield TensorHeader(name, path, str(facts["dtype"]), shape)
        except (KeyError, TypeError, ValueError) as error:
            raise BadModel(
                f"The header of {path} is broken at {name[:80]}.", "Download it again."
            ) from error


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            data = file.read(size) if size <= HEADER_CAP else b""
        header = json.loads(data)
    except (OSError, struct.error, ValueError) as error:
        raise BadModel(f"The header of {path} cannot be read.", "Download it again.") from error
    if not isinstance(header, dict):
        raise BadModel(f"The header of {path} is not a map.", "Download it again.")
    return header


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadModel(f"{path} is not valid JSON.", "Download the model again.") from error
    if not isinstance(value, dict):
        raise BadModel(f"{path} is not a JSON map.", "Download the model again.")
    return value


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
