"""A checkpoint on disk: find it by name, read its dimensions and tensor headers.

Finding one is cheap. Reading a config asks transformers, which loads torch: seconds, and hundreds
of megabytes. Who only needs a folder does not pay for that; a node lets its worker read.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError

from swarm.checkpoint.architectures import (
    EMBEDDINGS,
    HEADS,
    LAYER,
    SUPPORTED_ARCHITECTURES,
    context_of,
    experts_of,
    ffn_of,
    head_dims_of,
    is_attention,
    kv_heads_of,
)
from swarm.checkpoint.hub_model import open_on_hub
from swarm.checkpoint.safetensors_headers import (
    TensorHeader,
    is_metadata_file,
    is_pointer,
    left_behind,
    read_headers,
    read_json,
)
from swarm.checkpoint.weight_store import WeightStore
from swarm.errors import BadModel
from swarm.model_spec import BUILT_IN, ModelSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

UNREADABLE = (  # what transformers raises for a config with values that cannot be
    ArithmeticError, AttributeError, KeyError, OSError, StrictDataclassError, TypeError, ValueError,
)  # fmt: skip
QUANTISED_KEYS = ("quantization_config", "compression_config", "quantization")  # of config.json
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
PACKED = re.compile(  # last names of what quantised weights and their scales are stored as
    r"(qweight|qzeros|g_idx|absmax|quant_map|\w*(_scale|_scales|_scale_inv|_packed|_blocks)|scales)$"
)
LIMITS = {  # far above every model there is; what lies beyond is not built, not even without memory
    "num_hidden_layers": 4096,
    "hidden_size": 1 << 20,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "num_experts": 1 << 14,
    "num_local_experts": 1 << 14,
    "n_routed_experts": 1 << 14,
    "intermediate_size": 1 << 24,
    "moe_intermediate_size": 1 << 24,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 30,
    "head_dim": 1 << 16,
    **{"n_layer": 4096, "n_embd": 1 << 20, "n_head": 1 << 16, "n_positions": 1 << 24},
}
LIST_CAP = 1 << 16  # entries of a list or map in config.json


def find_model(name: str, *, revision: str = "") -> Path:
    """Return the folder of a model; of the hub's weights it has headers only, see `WeightStore`.

    Raises BadModel, Unreachable.
    """
    return open_model(name, revision=revision)[0]


def open_model(name: str, *, revision: str = "") -> tuple[Path, WeightStore | None]:
    """Return the folder of a built-in model, a folder or a hub id, and what fills it if it is thin.

    Raises BadModel, Unreachable.
    """
    if name == BUILT_IN:
        return Path(__file__).parent.parent / "models" / BUILT_IN, None
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
    raw, headers = read_facts(folder)
    config = _parsed(folder)
    _untie(config, headers)
    try:
        return _spec_of(name, raw, config, headers)
    except UNREADABLE as error:
        raise BadModel(f"config.json of {folder} is not valid: {error}.", "Repair it.") from error


def read_facts(folder: Path) -> tuple[dict[str, Any], list[TensorHeader]]:
    """Return config.json as a map and the tensors' headers, without torch; raises BadModel."""
    raw = read_config(folder)
    _require_fetched(folder)
    headers = read_headers(folder)
    _require_floats(folder, headers)
    return raw, headers


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json as a map; raises BadModel if it is absent, broken or unsupported."""
    path = folder / "config.json"
    if not path.is_file():
        raise _no_config(folder)
    raw = read_json(path)
    architecture = raw.get("model_type")
    if architecture not in SUPPORTED_ARCHITECTURES:
        cause = f"The architecture {str(architecture)[:40]!r} is not supported."
        if architecture is None:
            cause = f"A model is not supported without a model_type in config.json of {folder}."
        raise BadModel(
            cause,
            f"Supported are {', '.join(sorted(SUPPORTED_ARCHITECTURES))}.",
        )
    if any(raw.get(key) for key in QUANTISED_KEYS):
        raise _quantised(folder)
    if raw.get("transformers_weights"):
        raise BadModel(
            f"config.json of {folder} names weights of its own under transformers_weights.",
            "Name a model whose weights are in model.safetensors or its parts.",
        )
    _require_bounds(folder, raw)
    return raw


def load_config(folder: Path) -> "PretrainedConfig":
    """Return the transformers config of a supported model, as its weights are; raises BadModel.

    A checkpoint that holds an embedding and a head of its own is not tied, whatever it says.
    """
    read_config(folder)
    config = _parsed(folder)
    if getattr(config, "tie_word_embeddings", False):
        _untie(config, read_headers(folder))
    return config


def lone_head(headers: Iterable[TensorHeader]) -> TensorHeader | None:
    """The head that stands for the embedding as well, where a tied pair was saved by its name."""
    names = {header.name: header for header in headers}
    if _first_of(names, EMBEDDINGS):
        return None
    head = _first_of(names, HEADS)
    return names[head] if head else None


def _first_of(names: Iterable[str], ends: tuple[str, ...]) -> str:
    return next((name for name in names if name.endswith(ends)), "")


def _untie(config: "PretrainedConfig", headers: list[TensorHeader]) -> None:
    """transformers ties only where one of the two is absent, or both are the same."""
    names = [header.name for header in headers if not LAYER.search(header.name)]
    if _first_of(names, EMBEDDINGS) and _first_of(names, HEADS):
        config.tie_word_embeddings = False


def _parsed(folder: Path) -> "PretrainedConfig":
    from transformers import AutoConfig  # see the top of this file

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder)
    except UNREADABLE as error:
        cause = " ".join(str(error).split())
        raise BadModel(f"config.json of {folder} is not valid: {cause}.", "Repair it.") from error
    return config


def _no_config(folder: Path) -> BadModel:
    if (folder / "adapter_config.json").is_file():
        return BadModel(
            f"{folder} is an adapter (LoRA) and has no config.json of a whole model.",
            "Merge it into its base model, and name that folder.",
        )
    return BadModel(f"{folder} has no config.json.", "Name a folder with a Hugging Face model.")


def _quantised(folder: Path, tensor: str = "") -> BadModel:
    example = f" ({tensor[:120]})" if tensor else ""
    return BadModel(
        f"The weights in {folder} are quantised{example}.",
        "Name the model's original f32/bf16 weights; `--quant int8` quantises as it loads.",
    )


def _require_fetched(folder: Path) -> None:
    """Raise BadModel if git left a pointer in place of one of the small files."""
    for path in sorted(folder.iterdir()):
        if is_metadata_file(path.name) and path.is_file() and is_pointer(path):
            raise left_behind(str(path))


def _require_floats(folder: Path, headers: list[TensorHeader]) -> None:
    """Raise BadModel for weights that mean something only together with their scales."""
    for header in headers:
        last = header.name.rpartition(".")[2]
        is_number = header.dtype not in FLOATS and last in ("weight", "bias")
        is_narrow = header.dtype.startswith(("F8", "F6", "F4")) or is_number
        if PACKED.match(last) or (is_narrow and not is_buffer(header)):
            raise _quantised(folder, f"{header.name} is {header.dtype}")


def _require_bounds(folder: Path, raw: dict[str, Any]) -> None:
    """Raise BadModel before anything is made in the size that a config claims."""
    for name, value in raw.items():
        if isinstance(value, list | dict) and len(value) > LIST_CAP:
            raise BadModel(f"{name} in config.json of {folder} is too long.", "Repair it.")
        most = LIMITS.get(name, math.inf)
        if isinstance(value, int | float) and not value <= most:
            raise BadModel(
                f"{name} in config.json of {folder} is {value}, the most is {most}.",
                "Name another model.",
            )


def digest_of(raw: dict[str, Any], headers: list[TensorHeader]) -> str:
    """SHA-256, in hex, over the canonical config and the tensors' names, dtypes and shapes."""
    tensors = [[header.name, header.dtype, list(header.shape)] for header in headers]
    text = json.dumps([raw, tensors], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _spec_of(
    name: str, raw: dict[str, Any], config: "PretrainedConfig", headers: list[TensorHeader]
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


def _layer_parameters(headers: list[TensorHeader], layers: int) -> tuple[int, int]:
    counts: dict[str, list[int]] = {}
    for header in headers:
        match = LAYER.search(header.name)
        # layers beyond the last one draft tokens: we never load them
        if match and int(match[1]) < layers and not is_buffer(header):
            layer = counts.setdefault(match[1], [0, 0])
            layer[0 if is_attention(match[2]) else 1] += header.parameters
    if not counts:
        raise BadModel("The checkpoint's tensors belong to no layer.", "Name another model.")
    return max(layer[0] for layer in counts.values()), max(layer[1] for layer in counts.values())


def is_buffer(header: TensorHeader) -> bool:
    """Whether a tensor is no weight, but a table that the model makes for itself."""
    # gpt2 and gpt_neox checkpoints of old keep their causal masks and rotary tables
    return len(header.shape) > 3 or header.name.endswith(("inv_freq", "masked_bias"))
