"""Takes Python's overhead out of a loaded model, without a change to one bit of what it computes.

A small layer spends most of its time on looking things up: children and weights through
`Module.__getattr__`, options through the config's `__getattribute__`, slices of the layer list.
"""

from collections.abc import Iterator
from types import NoneType
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from node.engine.layers.fused_layer import FusedLayer
from node.engine.layers.module_matching import is_rms_norm
from node.engine.stage_model import StageModel


class FastModuleList(nn.ModuleList):
    """A list of layers whose full slice is itself: models slice it in every forward."""

    def __getitem__(self, index: Any) -> Any:
        """Return a layer, or the layers of a slice."""
        if isinstance(index, slice):
            return tuple(self._modules.values())[index]
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())


class CachedConfig:
    """A config that looks every option up once; it does not change after loading."""

    def __init__(self, config: PretrainedConfig) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["_config"], name)
        self.__dict__[name] = value
        return value


class FastRMSNorm(nn.Module):
    """LlamaRMSNorm in one call; the same bits in float32."""

    def __init__(self, norm: LlamaRMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self._shape = tuple(norm.weight.shape)
        self.variance_epsilon = norm.variance_epsilon

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        return functional.rms_norm(hidden_states, self._shape, self.weight, self.variance_epsilon)


def strip_python_overhead(stage: StageModel) -> None:
    """Shorten the look-ups of a loaded stage model; its modules must not be replaced afterwards."""
    _replace_layer_list(stage)
    for index in stage.owned:
        _replace_norms(stage.layers[index])
    for module in stage.model.modules():
        is_inner = module not in (stage.model, stage.base)
        if is_inner and not isinstance(getattr(module, "config", None), NoneType | CachedConfig):
            module.config = cast("Any", CachedConfig(cast("PretrainedConfig", module.config)))
    for module in stage.model.modules():
        found = {**module._modules, **module._parameters, **module._buffers}
        module.__dict__.update(found)
        if isinstance(module, FusedLayer):
            module.seal()


def _replace_layer_list(stage: StageModel) -> None:
    layers = FastModuleList(stage.layers)
    owner, _, name = stage.layers_name.rpartition(".")
    stage.model.get_submodule(owner).add_module(name, layers)
    stage.layers = layers


def _replace_norms(layer: nn.Module) -> None:
    for name, module in list(layer.named_modules()):
        weight = getattr(module, "weight", None)
        if is_rms_norm(module) and weight is not None and weight.dtype == torch.float32:
            layer.set_submodule(name, FastRMSNorm(cast("LlamaRMSNorm", module)))
