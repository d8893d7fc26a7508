"""Recognises modules by the code of their forward: two that run the same code compute the same.

Architectures copy their parts from each other in transformers, so a few kinds of parts serve many.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralModel
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

Fingerprint = tuple[bytes, tuple[str, ...], tuple[object, ...]]


def _fingerprint_of(function: Callable[..., object]) -> Fingerprint:
    code = inspect.unwrap(function).__code__
    constants = [each for each in code.co_consts if not _is_docstring(each)]
    return code.co_code, code.co_names, tuple(constants)


def _is_docstring(constant: object) -> bool:
    return isinstance(constant, str) and "\n" in constant


def _fingerprints_of(*classes: type[nn.Module]) -> frozenset[Fingerprint]:
    return frozenset(_fingerprint_of(each.forward) for each in classes)


RMS_NORM = _fingerprints_of(llama.LlamaRMSNorm)
GATED_MLP = _fingerprints_of(llama.LlamaMLP)
PLAIN_LAYERS = _fingerprints_of(llama.LlamaDecoderLayer, MixtralDecoderLayer)
PLAIN_MODELS = _fingerprints_of(llama.LlamaModel, MistralModel, Qwen2Model)
PLAIN_HEADS = _fingerprints_of(llama.LlamaForCausalLM)
WINDOWLESS = _fingerprints_of(llama.LlamaAttention)
CONFIG_WINDOW = _fingerprints_of(MistralAttention)
OWN_WINDOW = _fingerprints_of(Qwen2Attention, Qwen3Attention)
PLAIN_ATTENTIONS = WINDOWLESS | CONFIG_WINDOW | OWN_WINDOW
NORMED_HEADS = _fingerprints_of(Qwen3Attention)
ROTARY = frozenset(
    [_fingerprint_of(llama.apply_rotary_pos_emb), _fingerprint_of(llama.rotate_half)]
)


def matches(module: nn.Module, fingerprints: frozenset[Fingerprint]) -> bool:
    """Whether a module's forward is one of these."""
    return _fingerprint_of(type(module).forward) in fingerprints


def is_rms_norm(module: nn.Module) -> bool:
    """Whether a module computes exactly what LlamaRMSNorm does."""
    return type(module).__name__.endswith("RMSNorm") and matches(module, RMS_NORM)


def rotates_halves(attention: nn.Module) -> bool:
    """Whether an attention's rotary embedding is Llama's: other files have others by its name."""
    names: dict[str, Any] = inspect.unwrap(type(attention).forward).__globals__
    used = [names.get("apply_rotary_pos_emb"), names.get("rotate_half")]
    return all(each is not None and _fingerprint_of(each) in ROTARY for each in used)


def window_of(attention: Any) -> int:
    """Rows that an attention of these kinds sees at most, 0 for all."""
    window = None
    if matches(attention, CONFIG_WINDOW):
        window = getattr(attention.config, "sliding_window", None)
    elif matches(attention, OWN_WINDOW):
        window = attention.sliding_window
    return window or 0
