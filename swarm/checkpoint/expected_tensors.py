"""Which tensors a model of a config needs, held against those that its files have, before loading.

The judge is transformers itself: the model is built without memory, and each name goes the way that
its loader would send it. What would be made up there is refused here, and so is what it would leave
out although it belongs to a module that computes.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from swarm.checkpoint.architectures import LAYER
from swarm.checkpoint.folder import FLOATS, UNREADABLE, is_buffer, load_config, lone_head, read_spec
from swarm.checkpoint.known_specs import recall_spec, remember_spec
from swarm.checkpoint.safetensors_headers import TensorHeader, read_headers
from swarm.errors import BadModel
from swarm.model_spec import ModelSpec

logger = logging.getLogger(__name__)

UNBUILDABLE = (*UNREADABLE, AssertionError, RuntimeError, ImportError)
SHOWN = 3  # names in a message


def read_complete_spec(folder: Path, name: str) -> ModelSpec:
    """The dimensions of a model whose files hold all that it needs, and no more; raises BadModel.

    Reads headers only, and remembers what it found complete by the digest over all of them.
    """
    if known := recall_spec(folder, name):
        return known
    spec = read_spec(folder, name)
    check_tensors(folder, load_config(folder), read_headers(folder))
    remember_spec(spec)
    return spec


def check_tensors(folder: Path, config: PretrainedConfig, headers: list[TensorHeader]) -> None:
    """Raise BadModel unless these tensors are what transformers would load without a doubt."""
    expected = Expected(folder, config)
    got = expected.sort(headers)
    _refuse(folder, got.strange, "has tensors that its model would not use")
    _refuse(folder, got.unfit, "has tensors of another size or kind than its config.json says")
    _refuse(folder, got.missing, "lacks tensors")
    if got.ignored:
        logger.warning("tensors of no part of the model are ignored: %s", _shown(got.ignored))


@dataclass(slots=True)
class Sorted:
    """Names of tensors by what is the matter with them."""

    missing: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)  # belong to a module, and are not loaded
    unfit: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


class Expected:
    """The tensors of a model that was built without memory."""

    def __init__(self, folder: Path, config: PretrainedConfig) -> None:
        model = _built(folder, config)
        self._layers = int(config.num_hidden_layers)
        self._wanted: dict[str, Any] = model.state_dict()
        self._tied: Mapping[str, str] = dict(model.all_tied_weights_keys)
        self._modules = {name: module for name, module in model.named_modules() if name}
        self._prefix: str = model.base_model_prefix
        self._ignored = _ignored_by(model)
        self._renamings, self._converters = _conversions_of(model)

    def sort(self, headers: list[TensorHeader]) -> Sorted:
        """Hold the tensors of a checkpoint against those of the model."""
        found = Sorted()
        sources: dict[str, list[TensorHeader]] = defaultdict(list)
        for header in headers:
            target = self._target_of(header.name)
            if target in self._wanted:
                sources[target].append(header)
            elif is_buffer(header):
                continue
            elif not self._is_ignorable(target):
                found.strange.append(header.name)
            elif not (self._ignored and self._ignored.search(target)):
                found.ignored.append(header.name)
        found.unfit += [
            source.name
            for target, each in sources.items()
            for source in each
            if source.dtype not in FLOATS and self._wanted[target].is_floating_point()
        ]
        found.unfit += [each for each in sources if not self._fits(each, sources)]
        found.missing += self._missing(sources, lone_head(headers))
        return found

    def _target_of(self, name: str) -> str:
        from transformers.core_model_loading import rename_source_key

        target, _ = rename_source_key(
            name, self._renamings, self._converters, self._prefix, self._wanted
        )
        if target not in self._wanted and name in self._wanted:
            return name
        return str(target)

    def _fits(self, target: str, sources: Mapping[str, list[TensorHeader]]) -> bool:
        """Whether the tensors that feed a parameter have just its numbers: parts may lie apart."""
        wanted, given = self._wanted[target], sources[target]
        if len(given) == 1 and self._is_plain(given[0].name):
            return bool(given[0].shape == tuple(wanted.shape))
        return bool(sum(header.parameters for header in given) == wanted.numel())

    def _is_plain(self, name: str) -> bool:
        return not any(each.rename_source_key(name)[1] for each in self._converters)

    def _missing(
        self, sources: Mapping[str, list[TensorHeader]], head: TensorHeader | None
    ) -> Iterator[str]:
        for name in self._wanted:
            pair = {name, self._tied.get(name, name)}
            pair |= {target for target, source in self._tied.items() if source == name}
            if not any(each in sources for each in pair):
                yield name

    def _is_ignorable(self, target: str) -> bool:
        """Whether no module that computes would miss a tensor."""
        if self._ignored and self._ignored.search(target):
            return True
        layer = LAYER.search(target)
        if layer and int(layer[1]) >= self._layers:
            return True  # a layer that drafts tokens
        parents = target.split(".")[:-1]
        owners = (".".join(parents[:count]) for count in range(len(parents), 0, -1))
        owner = next((each for each in owners if each in self._modules), "")
        own = self._modules.get(owner)
        in_layer = bool(LAYER.search(f"{owner}.x"))
        return not in_layer and (
            own is None or not any(True for _ in own.parameters(recurse=False))
        )


def _built(folder: Path, config: PretrainedConfig) -> Any:
    import torch  # heavy, and not needed by who only asks
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except UNBUILDABLE as error:
        cause = " ".join(str(error).split())[:300]
        raise BadModel(
            f"No model can be made of config.json of {folder}: {cause}.", "Repair it."
        ) from error


def _conversions_of(model: Any) -> tuple[list[Any], list[Any]]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    return renamings, [each for each in mapping if isinstance(each, WeightConverter)]


def _ignored_by(model: Any) -> "re.Pattern[str] | None":
    """What transformers itself leaves out without a word."""
    patterns = set(model._keys_to_ignore_on_load_unexpected or ())
    ends = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in ends):
        patterns.add(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in ends):
        patterns.add(r"(^|\.)position_ids$")
    return re.compile("|".join(f"({each})" for each in sorted(patterns))) if patterns else None


def _refuse(folder: Path, names: list[str], what: str) -> None:
    if names:
        raise BadModel(
            f"The model in {folder} {what}: {_shown(names)}.",
            "Name the model as it was published, or download it again.",
        )


def _shown(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(name[:120] for name in listed[:SHOWN]) + more
