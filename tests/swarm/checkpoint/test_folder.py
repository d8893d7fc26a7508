"""Models are found by name, measured by their headers, and refused with a cause and a next step."""

import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swarm.checkpoint.architectures import SUPPORTED_ARCHITECTURES, is_attention
from swarm.checkpoint.folder import find_model, read_spec
from swarm.checkpoint.safetensors_headers import (
    DTYPE_BITS,
    POINTER,
    read_headers,
    read_json,
    weight_files,
)
from swarm.errors import BadModel

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
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)


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


@pytest.mark.parametrize(("most", "context"), [(64, 256), (256, 256), (300, 300), (16, 256)])
@pytest.mark.parametrize("spelling", ["type", "rope_type"])
def test_yarn_reaches_as_far_as_its_factor_says(
    most: int, context: int, spelling: str, folder: Path
) -> None:
    scaling = {spelling: "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    values = CONFIG | {"max_position_embeddings": most, "rope_scaling": scaling}
    (folder / "config.json").write_text(json.dumps(values))
    assert read_spec(folder, "m").context == context


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


def indexed(index: bytes) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_bytes(index)

    return change


def shorten(path: Path, by: int) -> None:
    os.truncate(path, path.stat().st_size - by)


def header_of(facts: dict[str, Any]) -> Callable[[Path], object]:
    text = json.dumps({"a": facts}).encode()
    return put("model.safetensors", struct.pack("<Q", len(text)) + text + bytes(64))


def numbered(*stems: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for stem in stems:
            write_weights(folder / f"{stem}.safetensors", {f"model.layers.0.{stem}": [1]})

    return change


def two_copies(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.rename(folder / "a.safetensors")
    write_weights(folder / "b.safetensors", {"model.layers.1.mlp.up_proj.weight": [310, 16]})


def adapter_alone(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model", "consolidated", "model.fp16", "adapter_model"], ["model"]),
        (["model", "model-00001-of-00002"], ["model"]),
        (["model-00001-of-00001", "consolidated.00"], ["model-00001-of-00001"]),
        (["model-00001-of-00001", "old-00001-of-00001"], ["model-00001-of-00001"]),
        (["weights", "adapter_model"], ["weights"]),
    ],
)
def test_only_files_that_transformers_would_load_count(
    names: list[str], chosen: list[str], folder: Path
) -> None:
    alone = read_spec(folder, "m")
    whole = folder / "model.safetensors"
    data = whole.read_bytes()
    whole.unlink()
    for name in names:
        (folder / f"{name}.safetensors").write_bytes(data)
    if names[0] == "model":
        absent = {"weight_map": dict.fromkeys(TENSORS, "model-00001-of-00009.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(absent))
    assert weight_files(folder) == [folder / f"{name}.safetensors" for name in chosen]
    assert read_spec(folder, "m") == alone
    assert len(read_headers(folder)) == len(TENSORS)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (put("config.json", b"{"), "not valid JSON"),
        (put("config.json", b"[]"), "not a JSON map"),
        (put("config.json", b"\xff"), "not valid JSON"),
        (edit_config(model_type="bloom"), "'bloom' is not supported. Supported are .*qwen3"),
        (edit_config(model_type=None), "not supported without a model_type"),
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
        (indexed(b"{}"), "no weight_map"),
        (indexed(b'{"weight_map": {"a": "x.safetensors"}}'), "lacks x.safetensors"),
        (edit_config(compression_config={"format": "pack-quantized"}), "quantised"),
        (edit_config(quantization={"bits": 4}), "quantised"),
        (edit_config(transformers_weights="other.safetensors"), "weights of its own"),
        (edit_config(num_hidden_layers=10**9), "num_hidden_layers .* is 1000000000, the most is"),
        (edit_config(vocab_size=1e300), "vocab_size .* the most is"),
        (edit_config(layer_types=["full_attention"] * 70_000), "layer_types .* too long"),
        (put("model.safetensors", POINTER + b"\noid sha256:cd\nsize 99\n"), "pointer of git-lfs"),
        (put("tokenizer.json", POINTER + b"\noid sha256:cd\nsize 99\n"), "pointer of git-lfs"),
        (put("config.json", POINTER + b"\noid sha256:cd\nsize 99\n"), "pointer of git-lfs"),
        (put("model.safetensors", struct.pack("<Q", 900) + b'{"a": '), "cut off within"),
        (lambda folder: shorten(folder / "model.safetensors", 1), "is cut off: it has"),
        (lambda folder: shorten(folder / "model.safetensors", 9000), "is cut off: it has"),
        (header_of({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}), "broken at a"),
        (header_of({"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}), "broken at a"),
        (header_of({"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}), "broken at a"),
        (two_copies, "both hold model.layers.1.mlp.up_proj.weight"),
        (numbered("model-00001-of-00003", "model-00003-of-00003"), "lacks model-00002-of-00003"),
        (adapter_alone, "is an adapter"),
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
