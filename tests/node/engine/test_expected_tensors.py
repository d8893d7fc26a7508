"""A checkpoint holds what its model needs: transformers decides, and we say so before loading."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from swarm.checkpoint import expected_tensors
from swarm.checkpoint.expected_tensors import check_tensors, read_complete_spec
from swarm.checkpoint.folder import load_config, read_spec
from swarm.checkpoint.safetensors_headers import read_headers
from swarm.errors import BadModel
from swarm.wire.sampling_params import Sampling
from tests.node.engine.architectures import CASES, OPTIONS, THREE_WAYS, TWO_WAYS

PROMPT = [5, 9, 33, 4, 71, 12]
TOKENS = 12
Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], object]


def check(folder: Path) -> None:
    read_spec(folder, "m")
    check_tensors(folder, load_config(folder), read_headers(folder))


def rewrite(folder: Path, change: Change) -> None:
    """Change the tensors of a checkpoint in one file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def reference(folder: Path) -> list[int]:
    """What transformers loads and generates."""
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    row = torch.tensor([PROMPT])
    with torch.inference_mode():
        found = model.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=TOKENS, do_sample=False
        )
    ids: list[int] = found[0, len(PROMPT) :].tolist()
    return ids


@pytest.mark.parametrize("architecture", CASES)
def test_what_transformers_saves_is_complete(
    architecture: str, tmp_path: Path, save: Callable[..., Any]
) -> None:
    save(tmp_path, architecture, OPTIONS.get(architecture, {}))
    check(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop(max(n for n in tensors if ".2." in n)))
    with pytest.raises(BadModel, match=r"lacks tensors|of another size"):
        check(tmp_path)


def narrow(tensors: Tensors) -> None:
    for name in [name for name in tensors if "proj" in name]:
        scale = tensors[name].abs().max() / 448
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[name.replace(".weight", ".weight_scale_inv")] = scale.reshape(1, 1)


def put(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Change:
    return lambda tensors: tensors.update({name: torch.ones(shape, dtype=dtype)})


def swap(old: str, new: str) -> Change:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


Q = "model.layers.1.self_attn.q_proj"
STRANGE = "would not use"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (narrow, "quantised.*F8_E4M3"),
        (put(f"{Q}.weight_scale", 1), "quantised.*weight_scale"),
        (put(f"{Q}.qweight", 4, 4, dtype=torch.int32), "quantised.*qweight"),
        (put(f"{Q}.g_idx", 4, dtype=torch.int32), "quantised.*g_idx"),
        (put(f"{Q}.weight", 128, 64, dtype=torch.int8), "quantised.*I8"),
        (put(f"{Q}.bias", 128), f"{STRANGE}.*q_proj.bias"),
        (put(f"{Q}.lora_A.weight", 4, 64), f"{STRANGE}.*lora_A"),
        (put("model.norm.bias", 64), f"{STRANGE}.*norm.bias"),
        (put("lm_head.bias", 96), f"{STRANGE}.*lm_head.bias"),
        (put("model.layers.3.more.weight", 1), f"{STRANGE}.*more"),
        (put(f"{Q}.weight", 128, 63), "another size.*q_proj"),
        (put("model.embed_tokens.weight", 97, 64), "another size.*embed_tokens"),
        (lambda tensors: tensors.pop("lm_head.weight"), "lacks tensors: lm_head.weight"),
        (swap("lm_head.weight", "score.weight"), "lacks tensors: lm_head.weight"),
        (lambda tensors: tensors.pop("model.norm.weight"), "lacks tensors: model.norm.weight"),
    ],
)
def test_what_would_be_made_up_or_left_out_is_refused(
    change: Change, cause: str, tmp_path: Path, save: Callable[..., Any]
) -> None:
    save(tmp_path, "llama", {})
    rewrite(tmp_path, change)
    with pytest.raises(BadModel, match=cause) as caught:
        check(tmp_path)
    assert caught.value.next_step


def test_an_expert_that_lacks_a_matrix_is_noticed(tmp_path: Path, save: Callable[..., Any]) -> None:
    save(tmp_path, "qwen3_moe", OPTIONS["qwen3_moe"])
    gone = "model.layers.1.mlp.experts.3.up_proj.weight"
    rewrite(tmp_path, lambda tensors: tensors.pop(gone))
    with pytest.raises(BadModel, match=r"layers\.1\.mlp\.experts"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "name", "shape"),
    [
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq", (4,)),
        ("llama", "model.layers.4.enorm.weight", (64,)),
        ("llama", "score.weight", (2, 64)),
        ("llama", "vision_tower.layer.weight", (2, 64)),
        ("gpt2", "transformer.h.0.attn.bias", (1, 1, 512, 512)),
        ("gpt2", "transformer.h.0.attn.masked_bias", ()),
        ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias", ()),
    ],
)
def test_what_transformers_knows_to_leave_out_does_no_harm(
    architecture: str, name: str, shape: tuple[int, ...], tmp_path: Path, save: Callable[..., Any]
) -> None:
    save(tmp_path, architecture, OPTIONS.get(architecture, {}))
    rewrite(tmp_path, put(name, *shape))
    check(tmp_path)


def own_head(tensors: Tensors) -> None:
    embedding = next(each for name, each in tensors.items() if name.endswith("embed_tokens.weight"))
    tensors["lm_head.weight"] = embedding.flip(0) * 1.5


def same_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


only_head = swap("model.embed_tokens.weight", "lm_head.weight")


@pytest.mark.parametrize(
    "pair",
    [
        ("llama", own_head, False),
        ("gemma2", own_head, False),
        ("qwen2", same_head, False),
        ("qwen2", only_head, True),
        ("gemma2", only_head, True),
    ],
)
def test_a_tied_pair_is_what_transformers_makes_of_it(
    pair: tuple[str, Change, bool],
    tmp_path: Path,
    save: Callable[..., Any],
    stage: Callable[..., Any],
    ring: Callable[..., Any],
) -> None:
    architecture, change, tied = pair
    save(tmp_path, architecture, OPTIONS.get(architecture, {}) | {"tie_word_embeddings": True})
    rewrite(tmp_path, change)
    check(tmp_path)
    assert read_spec(tmp_path, "m").tied is tied
    expected = reference(tmp_path)
    sampling = Sampling(max_tokens=TOKENS)
    shared = {"vocab_bounds": (0, 48, 96)}
    for stages in (
        [stage(tmp_path, (0, 4))],
        [stage(tmp_path, (0, 2)), stage(tmp_path, (2, 4), THREE_WAYS)],
        [stage(tmp_path, (0, 1), TWO_WAYS, **shared), stage(tmp_path, (1, 4), TWO_WAYS, **shared)],
    ):
        assert ring(stages).generate(PROMPT, sampling)[0] == expected


def test_a_model_that_no_module_can_be_made_of_is_refused(
    tmp_path: Path, save: Callable[..., Any]
) -> None:
    save(tmp_path, "glm4", OPTIONS["glm4"])
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"pad_token_id": 0', '"pad_token_id": 999'))
    with pytest.raises(BadModel, match="No model can be made"):
        check(tmp_path)


def test_what_was_found_complete_is_not_built_again(
    tmp_path: Path, save: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "model"
    save(folder, "llama", {})
    read_complete_spec(folder, "m")
    monkeypatch.setattr(expected_tensors, "check_tensors", lambda *_: pytest.fail("built again"))
    read_complete_spec(folder, "m")
    rewrite(folder, lambda tensors: tensors.pop("lm_head.weight"))
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    with pytest.raises(BadModel, match="lacks tensors"):
        read_complete_spec(folder, "m")
