"""Reads exactly a shard's weights from safetensors, through transformers' own conversions."""

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from node.engine.parallel.tensor_parallel import Cut, TensorSplit
from node.engine.stage_model import StageModel
from swarm.checkpoint.architectures import LAYER
from swarm.checkpoint.byte_ranges import ByteRange, ByteRanges, merged
from swarm.checkpoint.folder import lone_head
from swarm.checkpoint.safetensors_headers import TensorHeader, read_headers
from swarm.checkpoint.sparse_file import missing
from swarm.errors import BadModel

GAP_BYTES = 1 << 16  # smaller gaps within a tensor are not worth a request
BRIDGE = 0.002  # of what lies before a gap: so small ones between tensors are fetched as well

Group = list[tuple[TensorHeader, Cut | None]]
FetchBytes = Callable[[Mapping[str, ByteRanges]], None]  # blocks; raises SwarmError
ConversionMapping = list[Any]  # of transformers' weight transforms


class Counter:
    """Bytes that were read, counted by several threads."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count `count` bytes more."""
        with self._lock:
            self.bytes += count


class LazyShard:
    """Quacks like a safetensors slice, but answers `[...]` with this rank's intervals only."""

    def __init__(self, whole: Any, cut: Cut | None, counter: Counter) -> None:
        self._whole, self._cut, self._counter = whole, cut, counter

    def get_shape(self) -> list[int]:
        """The shape in the file."""
        return cast("list[int]", self._whole.get_shape())

    def get_dtype(self) -> str:
        """The dtype in the file."""
        return cast("str", self._whole.get_dtype())

    def __getitem__(self, _: object) -> torch.Tensor:
        tensor = self._read()
        self._counter.add(tensor.numel() * tensor.element_size())
        return tensor

    def _read(self) -> torch.Tensor:
        if self._cut is None:
            return cast("torch.Tensor", self._whole[...]).clone()  # not a view of the mapped file
        before = [slice(None)] * self._cut.dim
        parts = [self._whole[(*before, slice(*each))] for each in self._cut.intervals]
        return torch.cat(parts, self._cut.dim)


@dataclass(frozen=True, slots=True)
class Source:
    """Where weights come from, and where they go."""

    folder: Path
    device: torch.device
    reused: frozenset[str] = frozenset()  # layers that are loaded already, by their full name
    fetch: FetchBytes | None = None  # fetches the bytes that the folder's files lack


def load_weights(
    stage: StageModel,
    split: TensorSplit,
    source: Source,
    on_group: Callable[[str, float], None],
) -> int:
    """Fill the meta parameters and return the bytes read; raises BadModel.

    `on_group(prefix, fraction)` is called after each layer and after the ends, in the caller's
    thread.
    """
    model = stage.model
    counter = Counter()
    mapping = get_model_conversion_mapping(model)
    headers = read_headers(source.folder)
    names = _names_of(model, headers)
    groups = _groups_of(model, split, [(names[each.name], each) for each in headers], mapping)
    groups = {prefix: group for prefix, group in groups.items() if prefix not in source.reused}
    require_bytes([each for group in groups.values() for each in group], source.fetch)
    total = sum(header.parameters for group in groups.values() for header, _ in group)
    done = 0
    with ExitStack() as stack, _quiet():
        files = _Files(stack)
        for prefix, group in groups.items():
            sources = {names[h.name]: LazyShard(files.slice(h), cut, counter) for h, cut in group}
            _load_group(model, sources, mapping, source.device)
            done += sum(header.parameters for header, _ in group)
            on_group(prefix, done / total)
    if stage.has_head and getattr(model.config, "tie_word_embeddings", False):
        model.tie_weights()
    _finish(model, split, source)
    return counter.bytes


def require_bytes(group: Group, fetch: FetchBytes | None) -> None:
    """Let `fetch` fetch or check the bytes of these tensors; raises BadModel if some lack."""
    paths = {header.file.name: header.file for header, _ in group}
    wanted = _wanted(group)
    if fetch is not None and wanted:
        fetch(wanted)
    lacking = [name for name, ranges in wanted.items() if missing(paths[name], ranges)]
    if lacking:
        name = min(lacking)
        raise BadModel(f"{name} lacks bytes of this shard here.", "Name the model by its hub id.")


def ranges_of(header: TensorHeader, cut: Cut | None) -> list[ByteRange]:
    """The bytes of a tensor's slice: rows and experts apart, but of a cut by columns the span."""
    if cut is None or not header.parameters:
        return [(header.start, header.end)]
    outer = math.prod(header.shape[: cut.dim])
    stride = (header.end - header.start) // outer  # bytes from one block of the cut to the next
    unit = stride // header.shape[cut.dim]
    kept = sum(high - low for low, high in cut.intervals) * unit
    if outer > 1 and stride - kept < GAP_BYTES:
        return [(header.start, header.end)]
    return [
        (header.start + block * stride + low * unit, header.start + block * stride + high * unit)
        for block in range(outer)
        for low, high in cut.intervals
    ]


def _wanted(group: Group) -> dict[str, ByteRanges]:
    found: dict[str, list[ByteRange]] = defaultdict(list)
    for header, cut in group:
        found[header.file.name] += ranges_of(header, cut)
    return {name: merged(each, bridge=BRIDGE) for name, each in found.items()}


class _Files:
    """The checkpoint's files, opened once each."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._open: dict[Path, Any] = {}

    def slice(self, header: TensorHeader) -> Any:
        try:
            if header.file not in self._open:
                opened = safe_open(header.file, framework="pt")
                self._open[header.file] = self._stack.enter_context(opened)
            return self._open[header.file].get_slice(header.name)
        except (SafetensorError, OSError) as error:
            raise BadModel(f"{header.file} is broken.", "Download the model again.") from error


def _names_of(model: PreTrainedModel, headers: list[TensorHeader]) -> dict[str, str]:
    """The names to load tensors by: a tied pair may be saved as its head alone."""
    names = {header.name: header.name for header in headers}
    head = lone_head(headers)
    if head is not None and getattr(model.config, "tie_word_embeddings", False):
        embedding = model.get_input_embeddings()
        owner = next((name for name, each in model.named_modules() if each is embedding), "")
        names[head.name] = f"{owner}.weight"
    return names


def _groups_of(
    model: PreTrainedModel,
    split: TensorSplit,
    named: list[tuple[str, TensorHeader]],
    mapping: ConversionMapping,
) -> dict[str, Group]:
    """Owned tensors by layer, the ends under ""; another stage's tensors are never opened."""
    wanted = model.state_dict()
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    groups: dict[str, Group] = defaultdict(list)
    for own, header in named:
        name, _ = rename_source_key(own, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and own in wanted:
            name = own
        if name in wanted and name not in split.zeroed:
            cut = split.cuts.get(name)
            source = _source_cut(header, cut, wanted[name].ndim) if cut else None
            match = LAYER.search(name)
            groups[name[: match.start(2) - 1] if match else ""].append((header, source))
    return dict(sorted(groups.items()))


def _source_cut(header: TensorHeader, cut: Cut, dims: int) -> Cut:
    """The cut of one checkpoint tensor that feeds a parameter of `dims` dimensions."""
    dim = cut.dim - (dims - len(header.shape))  # a single expert's tensor lacks the first one
    size = header.shape[dim]
    if size == cut.whole:
        return Cut(dim, size, cut.parts, cut.intervals)
    if size * cut.parts == cut.whole:  # the parts are apart in the checkpoint
        return Cut(dim, size, 1, cut.intervals[:1])
    raise BadModel(
        f"{header.name} has {size} rows or columns where {cut.whole} were expected.",
        "The checkpoint does not fit its config.json.",
    )


def _load_group(
    model: PreTrainedModel,
    sources: dict[str, LazyShard],
    mapping: ConversionMapping,
    device: torch.device,
) -> None:
    options = LoadStateDictConfig(weight_mapping=mapping, device_map={"": device})
    info, _ = convert_and_load_state_dict_in_model(model, sources, options)
    if info.mismatched_keys or info.conversion_errors or info.unexpected_keys:
        wrong = [*info.mismatched_keys, *info.conversion_errors, *info.unexpected_keys]
        raise BadModel(f"The checkpoint's {wrong[0]} does not fit.", "Download the model again.")


def _finish(model: PreTrainedModel, split: TensorSplit, source: Source) -> None:
    device = source.device
    for name in split.zeroed:
        if any(name.startswith(f"{layer}.") for layer in source.reused):
            continue
        owner, _, own = name.rpartition(".")
        parameter = model.get_parameter(name)
        zeros = torch.zeros(parameter.shape, dtype=parameter.dtype, device=device)
        model.get_submodule(owner)._parameters[own] = nn.Parameter(zeros, requires_grad=False)
    lacking = [name for name, each in model.named_parameters() if each.is_meta]
    if lacking:
        raise BadModel(f"The checkpoint lacks {lacking[0]}.", "Download the model again.")
    _fill_buffers(model, device)


def _fill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute what no checkpoint holds: rotary frequencies, embedding scales."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta:
            tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    for name, buffer in list(model.named_non_persistent_buffers()):
        if not buffer.is_meta:
            continue
        owner, _, own = name.rpartition(".")
        model.get_submodule(owner)._buffers[own] = torch.empty_like(buffer, device=device)
    model.initialize_weights()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        parameter.requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
