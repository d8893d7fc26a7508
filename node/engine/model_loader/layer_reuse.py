"""ReusableLayers: loaded layers of a shard that was given up, for the next shard to take over."""

from collections.abc import Hashable

from torch import nn

from node.engine.parallel.tensor_parallel import TensorSplit
from node.engine.shard_io import StageSpec
from node.engine.stage_model import StageModel

Forms = dict[int, Hashable]  # by layer: equal ones hold the same numbers


def forms_of(stage: StageModel, split: TensorSplit) -> Forms:
    """What this rank holds of every owned layer; to be asked before anything is loaded."""
    return {
        index: _form_of(name, stage.layers[index], split)
        for index, name in zip(stage.owned, stage.layer_names(), strict=True)
    }


class ReusableLayers:
    """Layers without a model around them: no hook and no context leads back to the old one."""

    def __init__(self, spec: StageSpec, stage: StageModel, forms: Forms) -> None:
        self._kind = _kind_of(spec)
        self._forms = forms
        self._layers = {index: stage.layers[index] for index in stage.owned}
        for layer in self._layers.values():
            _set_free(layer)

    def move_into(
        self, stage: StageModel, split: TensorSplit, spec: StageSpec, forms: Forms
    ) -> frozenset[str]:
        """Put those that are the same into their places, forget the others; returns the names."""
        same = [index for index in stage.owned if self._is_same(index, spec, forms)]
        for index in same:
            layer = self._layers[index]
            names = {id(module): name for name, module in stage.layers[index].named_modules()}
            split.reduced = [
                layer.get_submodule(names[id(module)]) if id(module) in names else module
                for module in split.reduced
            ]
            stage.replace_layer(index, layer)
        self._layers.clear()
        return frozenset(f"{stage.layers_name}.{index}" for index in same)

    def _is_same(self, index: int, spec: StageSpec, forms: Forms) -> bool:
        is_known = index in self._layers and self._kind == _kind_of(spec)
        return is_known and self._forms[index] == forms[index]


def bytes_of(layer: nn.Module) -> int:
    """Bytes of a layer's parameters."""
    return sum(each.numel() * each.element_size() for each in layer.parameters())


def _kind_of(spec: StageSpec) -> Hashable:
    return spec.folder, spec.dtype, spec.quant


def _form_of(name: str, layer: nn.Module, split: TensorSplit) -> Hashable:
    shapes = tuple((own, tuple(each.shape)) for own, each in layer.named_parameters())
    prefix = f"{name}."
    cuts = tuple(sorted((n, repr(cut)) for n, cut in split.cuts.items() if n.startswith(prefix)))
    zeroed = tuple(sorted(n for n in split.zeroed if n.startswith(prefix)))
    return shapes, cuts, zeroed


def _set_free(layer: nn.Module) -> None:
    for module in layer.modules():
        module.__dict__.pop("swarm_context", None)
        for hooks in (
            module._forward_hooks,
            module._forward_hooks_with_kwargs,
            module._forward_hooks_always_called,
            module._forward_pre_hooks,
            module._forward_pre_hooks_with_kwargs,
        ):
            hooks.clear()
