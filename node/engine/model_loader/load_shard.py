"""Loads a shard: stage model, cut, weights, KV cache - everything that a runner runs on.

Each step finds the modules as the one before left them, so their order matters:

1. **Build** the stage model on meta: nothing is allocated before all is known to fit.
2. **Cut** it to this rank, on meta too: shapes then say what the loader reads, how much KV fits
   beside it, and which layers of the shard before are the same.
3. **Reuse** those layers, before anything is read: the loader leaves them out.
4. **Load** the others, one after the other. As soon as a layer is there it is **fused**, which
   joins the weights of its linears, then **quantised and packed**: this wants the joined weights
   and gives them a form that nothing can join any more. Layer by layer, so that only one of them
   lies in memory twice at a time.
5. **Attach** the context of attention: fused layers are new modules, reused ones have lost theirs.
6. **Hook** the sums over ranks to the modules whose output is partial. Fusing, quantising and
   packing leave those in place, but a reused layer brings its own, without hooks.
7. **Strip** Python's overhead, last: modules note their children, and fused layers are **sealed**,
   that is, note how each linear is called - directly, or through the hooks it has by then. What is
   replaced or hooked afterwards would not be seen.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from node.engine.kernels.int8_linear import quantise_layer, saved_bytes
from node.engine.kernels.packed_linear import pack_layer
from node.engine.kernels.small_batch import has_kernels
from node.engine.kv_cache.arena import MOST_TOKENS, KVStore
from node.engine.kv_cache.block_pool import BLOCK_TOKENS
from node.engine.layers.fused_layer import fuse
from node.engine.model_loader.fast_modules import strip_python_overhead
from node.engine.model_loader.layer_reuse import Forms, ReusableLayers, bytes_of, forms_of
from node.engine.model_loader.weight_loader import FetchBytes, Source, load_weights
from node.engine.parallel.allreduce import Reducer
from node.engine.parallel.tensor_parallel import TensorSplit
from node.engine.parallel.vocab_parallel import Vocabulary
from node.engine.shard_io import StageSpec
from node.engine.stage_model import StageModel, build_stage_model
from swarm.checkpoint.folder import load_config
from swarm.errors import EngineError
from swarm.formatting import bytes_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WeightSources:
    """Where a shard's weights may come from, besides the model's folder."""

    fetch: FetchBytes | None = None  # fetches into the folder what it lacks
    reusable: ReusableLayers | None = None  # layers of the shard before


FOLDER_ONLY = WeightSources()


@dataclass(frozen=True, slots=True)
class Loader:
    """How shards are loaded on one device."""

    budget_bytes: int  # of weights and KV together
    device: torch.device
    reducer: Reducer | None = None
    on_progress: Callable[[float], None] | None = None
    sources: WeightSources = FOLDER_ONLY


@dataclass(frozen=True, slots=True)
class LoadedParts:
    """A shard, ready to run."""

    config: PretrainedConfig
    stage: StageModel
    store: KVStore
    bytes_read: int
    forms: Forms  # of its layers, so that the next shard may keep them
    bytes_kept: int = 0  # in layers of the shard before
    vocabulary: Vocabulary | None = None  # if the ranks share it


def load_parts(spec: StageSpec, loader: Loader) -> LoadedParts:
    """Read a shard, step by step as above; raises BadModel, and EngineError if it does not fit."""
    if (loader.reducer is None) != (spec.ranks == 1):
        raise EngineError(f"A stage of {spec.ranks} ranks and its reducer do not match.")
    if spec.quant == "int8" and loader.device.type != "cpu":
        raise EngineError("int8 runs on CPUs only.", "Use f32, f16 or bf16 here.")
    config = load_config(spec.folder)
    is_last = spec.end == int(config.num_hidden_layers)
    owned = range(spec.start, spec.end)
    vocabulary = _vocabulary_of(spec, int(config.vocab_size))
    has_head = is_last and (spec.rank == 0 or vocabulary is not None)
    stage = build_stage_model(config, owned, spec.torch_dtype, has_head=has_head)
    split = TensorSplit(stage, spec, config)
    if vocabulary is not None:
        split.cuts |= vocabulary.cut(stage)
    kv_tokens = _kv_tokens_of(stage, split, spec, loader.budget_bytes)
    forms, reused = forms_of(stage, split), frozenset[str]()
    if loader.sources.reusable is not None:
        reused = loader.sources.reusable.move_into(stage, split, spec, forms)
    bytes_kept = sum(bytes_of(stage.layer_names()[name]) for name in reused)
    bytes_read = _load(stage, split, spec, loader, reused)
    stage.attach_context()
    if loader.reducer is not None:
        split.hook(loader.reducer.all_reduce)
        if vocabulary is not None:
            vocabulary.hook(stage, loader.reducer.all_reduce)
    strip_python_overhead(stage)
    like = torch.empty(0, dtype=spec.torch_dtype, device=loader.device)
    store = KVStore(stage.owned, split.kv_heads, split.head_dims, kv_tokens, like)
    logger.info("loaded layers [%d,%d) rank %d", spec.start, spec.end, spec.rank)
    return LoadedParts(config, stage, store, bytes_read, forms, bytes_kept, vocabulary)


def _vocabulary_of(spec: StageSpec, vocab: int) -> Vocabulary | None:
    if not spec.vocab_bounds or spec.ranks == 1:
        return None
    if spec.vocab_bounds[-1] != vocab:
        raise EngineError(f"The bounds {spec.vocab_bounds} must end at the model's {vocab} ids.")
    return Vocabulary(spec.vocab_bounds, spec.rank)


def weight_bytes_of(stage: StageModel) -> int:
    """Bytes of the parameters of a stage model, each counted once."""
    unique = {id(each): each for each in stage.model.parameters()}
    return sum(each.numel() * each.element_size() for each in unique.values())


def _load(
    stage: StageModel,
    split: TensorSplit,
    spec: StageSpec,
    loader: Loader,
    reused: frozenset[str],
) -> int:
    indices = dict(zip(stage.layer_names(), stage.owned, strict=True))
    can_fuse = has_kernels(loader.device, spec.torch_dtype)

    def report(prefix: str, fraction: float) -> None:
        if prefix in indices:
            if can_fuse:
                _fuse(stage, indices[prefix])
            _quantise_and_pack(stage.layers[indices[prefix]], spec)
        if loader.on_progress is not None:
            loader.on_progress(fraction)

    source = Source(spec.folder, loader.device, reused, loader.sources.fetch)
    bytes_read = load_weights(stage, split, source, report)
    model: Any = stage.model
    head, ids = model.get_output_embeddings(), model.get_input_embeddings()
    if getattr(head, "weight", None) is not getattr(ids, "weight", None):  # one copy for both
        pack_layer(head)
    return bytes_read


def _fuse(stage: StageModel, index: int) -> None:
    layer = fuse(stage.layers[index])
    if layer is not None:
        stage.replace_layer(index, layer)


def _quantise_and_pack(layer: nn.Module, spec: StageSpec) -> None:
    """Give the weights of a loaded layer the form in which they are fastest."""
    if spec.quant == "int8":
        quantise_layer(layer)
    pack_layer(layer)


def _kv_tokens_of(stage: StageModel, split: TensorSplit, spec: StageSpec, budget_bytes: int) -> int:
    """Tokens of KV that fit beside the weights; raises EngineError if none does."""
    weights = weight_bytes_of(stage)
    if spec.quant == "int8":
        weights -= sum(saved_bytes(layer) for layer in stage.layer_names().values())
    width = split.kv_heads * sum(split.head_dims) * spec.torch_dtype.itemsize
    token_bytes = width * (spec.end - spec.start)
    left = budget_bytes - weights
    tokens = min(left // token_bytes if token_bytes else MOST_TOKENS, MOST_TOKENS)
    if tokens < BLOCK_TOKENS or left < 0:
        raise EngineError(
            f"The shard needs {bytes_text(weights + BLOCK_TOKENS * token_bytes)}"
            f" of a budget of {bytes_text(budget_bytes)}.",
            "Give it fewer layers or more memory.",
        )
    blocks = tokens // BLOCK_TOKENS
    return (blocks - (blocks % 2 == 0)) * BLOCK_TOKENS  # the store has an odd number anyway
