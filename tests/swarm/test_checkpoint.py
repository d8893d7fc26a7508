"""Models are found by name, measured by their headers, and refused with a cause and a next step."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swarm.checkpoint import SUPPORTED_ARCHITECTURES, find_model, is_attention, read_spec
from swarm.errors import BadModel
from swarm.headers import read_json

CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 300,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
TENSORS = {
    "model.embed_tokens.weight": [32, 16],
    "model.layers.0.self_attn.q_proj.weight": [16, 16],
    "model.layers.0.self_attn.o_proj.weight": [16, 16],
    "model.layers.0.mlp.up_proj.weight": [300, 16],
    "model.layers.0.post_attention_layernorm.weight": [16],
    "model.layers.1.self_attn.q_proj.weight": [16, 16],
    "model.layers.1.self_attn.rotary_emb.inv_freq": [9999],
    "model.layers.1.mlp.up_proj.weight": [310, 16],
    "model.norm.weight": [16],
}


def write_weights(path: Path, tensors: dict[str, list[int]], dtype: str = "F32") -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, shape in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of headers only."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_weights(tmp_path / "model.safetensors", TENSORS)
    return tmp_path


def test_spec_counts_the_largest_layer_from_the_headers(folder: Path) -> None:
    spec = read_spec(folder, "mine")
    assert (spec.name, spec.architecture, spec.layers, spec.hidden) == ("mine", "llama", 2, 16)
    assert (spec.heads, spec.kv_heads, spec.head_dim) == (4, 2, 4)
    assert (spec.ffn, spec.mlp_blocks, spec.vocab, spec.context) == (300, 3, 32, 64)
    assert spec.tied
    assert spec.attention_parameters == 2 * 16 * 16
    assert spec.mlp_parameters == 310 * 16


def test_digest_follows_config_and_headers_but_not_their_files(folder: Path) -> None:
    first = read_spec(folder, "a").digest
    (folder / "model.safetensors").unlink()
    names = sorted(TENSORS)
    for part, chosen in (("a", names[:4]), ("b", names[4:])):
        write_weights(folder / f"{part}.safetensors", {name: TENSORS[name] for name in chosen})
    parts = {name: ("a" if name in names[:4] else "b") + ".safetensors" for name in names}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    assert read_spec(folder, "b").digest == first
    (folder / "config.json").write_text(json.dumps(CONFIG | {"rms_norm_eps": 0.5}))
    second = read_spec(folder, "a").digest
    write_weights(folder / "b.safetensors", {name: TENSORS[name] for name in names[4:]}, "BF16")
    assert len({first, second, read_spec(folder, "a").digest}) == 3


def test_experts_are_counted_by_their_own_columns(folder: Path) -> None:
    moe = CONFIG | {"model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 130}
    (folder / "config.json").write_text(json.dumps(moe))
    spec = read_spec(folder, "m")
    assert (spec.experts, spec.ffn, spec.mlp_blocks) == (4, 130, 2)


def test_context_stops_where_positions_would_be_rescaled(folder: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    scaled = CONFIG | {"rope_parameters": rope | {"original_max_position_embeddings": 48}}
    (folder / "config.json").write_text(json.dumps(scaled))
    assert read_spec(folder, "m").context == 48


def edit_config(**values: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(CONFIG | values))


def put(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def without_weights(*others: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name in others:
            (folder / name).touch()

    return change


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (put("config.json", b"{"), "not valid JSON"),
        (put("config.json", b"[]"), "not a JSON map"),
        (put("config.json", b"\xff"), "not valid JSON"),
        (edit_config(model_type="bloom"), "'bloom' is not supported. Supported are .*qwen3"),
        (edit_config(model_type=None), "not supported"),
        (edit_config(quantization_config={"quant_method": "gptq"}), "quantised"),
        (edit_config(hidden_size="wide"), "not valid"),
        (edit_config(num_attention_heads=0), "not valid"),
        (without_weights(), "no safetensors"),
        (without_weights("pytorch_model.bin"), r"only pickled weights \(.bin\)"),
        (put("model.safetensors", b""), "cannot be read"),
        (put("model.safetensors", b"\xff" * 20), "cannot be read"),
        (put("model.safetensors", struct.pack("<Q", 2) + b"[]"), "not a map"),
        (put("model.safetensors", struct.pack("<Q", 9) + b'{"a": {}}'), "broken at a"),
        (put("model.safetensors", struct.pack("<Q", 2) + b"{}"), "belong to no layer"),
        (put("model.safetensors.index.json", b"{}"), "no weight_map"),
        (put("model.safetensors.index.json", b'{"weight_map": {"a": "x"}}'), "cannot be read"),
    ],
)
def test_broken_checkpoint_is_refused_with_cause_and_next_step(
    change: Callable[[Path], object], cause: str, folder: Path
) -> None:
    change(folder)
    with pytest.raises(BadModel, match=cause) as caught:
        read_spec(folder, "m")
    assert caught.value.next_step
    assert caught.value.exit_code == 2


def test_settings_that_cannot_be_opened_are_not_called_broken(folder: Path) -> None:
    with pytest.raises(BadModel, match="cannot be read: Is a directory"):
        read_json(folder)


def test_folder_is_found_and_absent_one_is_not(folder: Path) -> None:
    assert find_model(str(folder)) == folder
    assert find_model("swarm-tiny").name == "swarm-tiny"
    with pytest.raises(BadModel, match="no folder"):
        find_model(str(folder / "absent"))


def test_norms_named_after_attention_are_not_attention() -> None:
    assert is_attention("self_attn.q_proj.weight")
    assert is_attention("attention.dense.bias")
    assert not is_attention("post_attention_layernorm.weight")
    assert len(SUPPORTED_ARCHITECTURES) == len(set(SUPPORTED_ARCHITECTURES))
