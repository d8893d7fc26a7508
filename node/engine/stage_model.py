"""A model without weights, cut down to one stage: foreign layers, ends and norms give way."""

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from node.engine.attention.interface import NAME, AttentionContext, RunningStep, register_attention
from node.engine.lean_transformers import without_compiler
from swarm.errors import EngineError

FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")


class Skip(nn.Module):
    """Stands where a layer of another stage would be: hands its input on."""

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        """Return the first input."""
        return inputs[0] if inputs else next(iter(named.values()))


@dataclass(slots=True)
class StageModel:
    """The cut model and the two places where hidden rows enter and leave it."""

    model: PreTrainedModel
    base: nn.Module
    layers: nn.ModuleList
    layers_name: str  # of `layers` within `model`
    has_head: bool
    step: RunningStep = field(default_factory=RunningStep)
    entering: torch.Tensor | None = None  # [1, tokens, hidden], set before a forward
    leaving: torch.Tensor | None = None
    owned: range = field(default=range(0))

    def layer_names(self) -> dict[str, nn.Module]:
        """The owned layers by their full name."""
        return {f"{self.layers_name}.{i}": self.layers[i] for i in self.owned}

    def replace_layer(self, index: int, layer: nn.Module) -> None:
        """Put a loaded layer in the place of an empty one; `attach_context` is to follow."""
        self.layers[index] = layer
        _hook(self, range(index, index + 1))

    def attach_context(self) -> None:
        """Give every owned module that knows its layer's index the context of the running step."""
        for module in (m for i in self.owned for m in self.layers[i].modules()):
            layer = getattr(module, "layer_idx", None)
            if isinstance(layer, int):
                module.__dict__["swarm_context"] = AttentionContext(self.step, layer)


def build_stage_model(
    config: PretrainedConfig, owned: range, dtype: torch.dtype, *, has_head: bool
) -> StageModel:
    """Return the model on the meta device with only `owned` layers; raises EngineError.

    The full model is built and then cut: many architectures derive a layer's kind from its index.
    """
    register_attention()
    with torch.device("meta"), without_compiler():
        built = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation=NAME
        )
    model = cast("PreTrainedModel", built.eval().requires_grad_(False))
    base = model.base_model
    name, layers = _find_layers(base, int(config.num_hidden_layers))
    if owned.stop > len(layers):
        raise EngineError(f"Layer {owned.stop - 1} does not exist, the model has {len(layers)}.")
    prefix = next(n for n, module in model.named_modules() if module is layers)
    stage = StageModel(model, base, layers, prefix or name, has_head, owned=owned)
    _cut(stage, config)
    _hook(stage, owned)
    stage.attach_context()
    return stage


def _find_layers(base: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise EngineError(f"{type(base).__name__} has no list of {count} layers.")


def _cut(stage: StageModel, config: PretrainedConfig) -> None:
    model, layers, owned = stage.model, stage.layers, stage.owned
    for index in range(len(layers)):
        if index not in owned:
            layers[index] = Skip()
    if not stage.has_head:
        for name in FINAL_NORMS:
            if hasattr(stage.base, name):
                setattr(stage.base, name, Skip())
        model.set_output_embeddings(Skip())  # type: ignore[no-untyped-call]
    is_tied = bool(getattr(config, "tie_word_embeddings", False))
    if owned.start > 0:
        for name in ("wpe", "embed_positions"):  # positions enter with the embedding, once
            if isinstance(getattr(stage.base, name, None), nn.Embedding):
                setattr(stage.base, name, NoPositions())
        if not (is_tied and stage.has_head):
            model.set_input_embeddings(Skip())


class NoPositions(nn.Module):
    """Stands for learned positions on a stage that receives hidden rows."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """Return zeros that broadcast: [1, tokens, 1]."""
        return torch.zeros((*positions.shape, 1), device=positions.device)


def _hook(stage: StageModel, indices: range) -> None:
    """Let hidden rows enter and leave at those of these layers that are the first or the last."""

    def enter(
        module: nn.Module, inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        hidden = stage.entering
        assert hidden is not None
        if inputs:
            return (hidden, *inputs[1:]), named
        return inputs, named | {"hidden_states": hidden}

    def leave(module: nn.Module, inputs: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        stage.leaving = cast("torch.Tensor", first)

    if stage.owned.start > 0 and stage.owned.start in indices:
        first = stage.layers[stage.owned.start]
        first.register_forward_pre_hook(enter, with_kwargs=True)
    if stage.owned.stop - 1 in indices:
        stage.layers[stage.owned.stop - 1].register_forward_hook(leave)
