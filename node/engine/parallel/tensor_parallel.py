"""Cuts a stage's layers to one rank's share: attention by KV heads, MLP by blocks of columns.

transformers' own plan (`model.tp_plan`) names a style for each module; STYLES mends it where the
plan is silent or gathers. What has no style, or a style that gathers, stays whole on every rank:
correct, without saving. That is the attention of olmo2, olmo3, olmoe and minimax_m2, whose norm
runs over the full width of the queries.

style             weight is cut by             bias              afterwards
colwise           rows                         rows
packed_colwise    the same rows of both halves likewise
packed_thirds     the same rows of each third  likewise
packed_qkv        rows of q, of k, of v        likewise
rowwise           columns                      on one rank       all-reduce
heads             its only dimension
column_pairs      columns, two for each unit   columns
column_input      rows (weight is transposed)                    (the experts' all-reduce)
one_rank          nothing; zeros elsewhere
moe_tp_experts    (a module, not a weight)                       all-reduce
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from node.engine.shard_io import StageSpec
from node.engine.stage_model import StageModel
from swarm.checkpoint.architectures import ffn_of, head_dims_of, is_attention, kv_heads_of
from swarm.errors import EngineError
from swarm.plan import COLUMNS_PER_BLOCK

LLAMA_ATTENTION = {
    "self_attn.q_proj": "colwise",
    "self_attn.k_proj": "colwise",
    "self_attn.v_proj": "colwise",
    "self_attn.o_proj": "rowwise",
}
LATENT_ATTENTION = {  # every rank computes the latent from which heads take keys and values
    "self_attn.q_proj": "colwise",
    "self_attn.q_b_proj": "colwise",
    "self_attn.kv_b_proj": "colwise",
    "self_attn.o_proj": "rowwise",
}
PACKED_MLP = {"mlp.gate_up_proj": "packed_colwise", "mlp.down_proj": "rowwise"}
STYLES: dict[str, dict[str, str]] = {  # by model type: names within a layer
    "gpt2": {
        "attn.c_attn": "packed_thirds",
        "attn.c_proj": "rowwise",
        "mlp.c_fc": "colwise",
        "mlp.c_proj": "rowwise",
    },
    "deepseek_v3": LATENT_ATTENTION,
    "glm4": PACKED_MLP,
    "gpt_oss": LLAMA_ATTENTION
    | {
        "self_attn.sinks": "heads",
        "mlp.experts": "moe_tp_experts",
        "mlp.experts.gate_up_proj": "column_pairs",
        "mlp.experts.gate_up_proj_bias": "column_pairs",
        "mlp.experts.down_proj": "column_input",
        "mlp.experts.down_proj_bias": "one_rank",
    },
    "granitemoe": LLAMA_ATTENTION,
    "qwen2_moe": {
        "mlp.shared_expert.gate_proj": "colwise",
        "mlp.shared_expert.up_proj": "colwise",
        "mlp.shared_expert.down_proj": "rowwise",
    },
    "phi3": PACKED_MLP | {"self_attn.qkv_proj": "packed_qkv", "self_attn.o_proj": "rowwise"},
}
REDUCED = ("rowwise", "moe_tp_experts")

Intervals = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """What this rank keeps of a parameter: intervals of one dimension, in order."""

    dim: int
    whole: int  # size of that dimension in the uncut model
    parts: int  # equal fused parts along it; a checkpoint may hold them apart
    intervals: Intervals


@dataclass(frozen=True, slots=True)
class Share:
    """A rank's part of the units of one kind."""

    low: int
    high: int
    units: int
    is_first: bool  # the first rank that holds any: it adds the biases

    def columns(self, size: int, block: int) -> tuple[int, int]:
        """The share of `size` columns in blocks, the last of which may be short."""
        return min(self.low * block, size), min(self.high * block, size)


class Absent(nn.Module):
    """Stands for a part of which this rank holds nothing: it adds zeros to the sum."""

    def __init__(self, *, is_attention: bool) -> None:
        super().__init__()
        self._is_attention = is_attention

    def forward(
        self, *inputs: torch.Tensor, **named: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, None]:
        """Return zeros like the hidden rows, as the absent part would."""
        hidden = inputs[0] if inputs else named["hidden_states"]
        zeros = torch.zeros_like(hidden)
        return (zeros, None) if self._is_attention else zeros


class TensorSplit:
    """The cut of one stage model: it changes shapes on meta, and says what the loader reads."""

    def __init__(self, stage: StageModel, spec: StageSpec, config: PretrainedConfig) -> None:
        self.cuts: dict[str, Cut] = {}
        self.zeroed: set[str] = set()  # parameters that another rank adds
        self.reduced: list[nn.Module] = []
        self._stage, self._config = stage, config
        self.head_dims = head_dims_of(config)
        self._ffn = ffn_of(config)
        blocks = -(-self._ffn // COLUMNS_PER_BLOCK)
        self._kv = _share("KV heads", spec.kv_bounds, spec.rank, kv_heads_of(config))
        self._mlp = _share("MLP blocks", spec.mlp_bounds, spec.rank, blocks)
        if spec.ranks > 1:
            for name, layer in stage.layer_names().items():
                self._cut_layer(name, layer)

    @property
    def kv_heads(self) -> int:
        """KV heads whose cache this rank keeps."""
        is_cut = any(is_attention(name) for name in self.cuts)
        is_absent = self._kv.high == self._kv.low and bool(self.reduced)
        return self._kv.high - self._kv.low if is_cut or is_absent else self._kv.units

    def _cut_layer(self, layer_name: str, layer: nn.Module) -> None:
        styles = self._styles_of(layer_name)
        for name, module in list(layer.named_modules()):
            style = styles.get(name, "")
            owns = [each for each, _ in module.named_parameters(recurse=False)]
            own_styles = {each: styles.get(f"{name}.{each}", style) for each in owns}
            if any(own_styles.values()):
                self._cut_module(f"{layer_name}.{name}", module, own_styles)
        for name in [each for each, style in styles.items() if style in REDUCED]:
            if _has(layer, name):
                self._reduce(layer, name)

    def _styles_of(self, layer_name: str) -> dict[str, str]:
        prefix = re.sub(r"\.\d+$", ".*.", layer_name)
        plan = self._stage.model.tp_plan
        own = {name.removeprefix(prefix): s for name, s in plan.items() if name.startswith(prefix)}
        return own | STYLES.get(str(self._config.model_type), {})

    def _cut_module(self, name: str, module: nn.Module, styles: dict[str, str]) -> None:
        share = self._kv if is_attention(name) else self._mlp
        for own, style in styles.items():
            parameter = module._parameters[own]
            assert parameter is not None
            if style == "one_rank" or (style == "rowwise" and own == "bias"):
                self._give_away(name, module, own, share)
                continue
            cut = self._cut_of(name, own, parameter, (style, isinstance(module, Conv1D)))
            if cut is None:
                continue
            shape = list(parameter.shape)
            shape[cut.dim] = sum(high - low for low, high in cut.intervals)
            empty = torch.empty(shape, dtype=parameter.dtype, device="meta")
            module._parameters[own] = nn.Parameter(empty, requires_grad=False)
            self.cuts[f"{name}.{own}"] = cut
        _tell_sizes(module)
        if styles.get("weight") in ("packed_thirds", "packed_qkv"):
            self._tell_heads(self._stage.model.get_submodule(name.rpartition(".")[0]))

    def _give_away(self, name: str, module: nn.Module, own: str, share: Share) -> None:
        if share.is_first:
            return
        if isinstance(module, nn.Linear):
            module.bias = None  # type: ignore[assignment]
        else:
            self.zeroed.add(f"{name}.{own}")

    def _cut_of(
        self, name: str, own: str, parameter: torch.Tensor, how: tuple[str, bool]
    ) -> Cut | None:
        style, is_transposed = how
        last = parameter.ndim - 1
        rows = max(0, last - 1) if not is_transposed else last
        columns = last if not is_transposed else max(0, last - 1)
        dims = {
            "colwise": rows,
            "packed_colwise": rows,
            "packed_thirds": rows,
            "packed_qkv": rows,
            "rowwise": columns,
            "heads": 0,
            "column_pairs": last,
            "column_input": last - 1,
        }
        if style not in dims:
            return None
        dim = dims[style]
        size = int(parameter.shape[dim])
        if style == "packed_qkv":
            return Cut(dim, size, 1, self._qkv_intervals(name, size))
        parts = {"packed_colwise": 2, "packed_thirds": 3}.get(style, 1)
        low, high = self._interval(f"{name}.{own}", size // parts, 2 if "pairs" in style else 1)
        step = size // parts
        intervals = tuple((part * step + low, part * step + high) for part in range(parts))
        return Cut(dim, size, parts, intervals)

    def _interval(self, name: str, size: int, factor: int) -> tuple[int, int]:
        if is_attention(name):
            units = self._kv.units
            keys, values = self.head_dims
            has_any_width = name.endswith(".sinks") or keys != values
            if size % (units if has_any_width else units * keys):
                raise EngineError(f"{name} of size {size} is not made of {units} KV heads.")
            return self._kv.columns(size, size // units)
        columns = size // factor
        # modules of another width (a shared expert, a dense first layer) are cut in proportion
        block = COLUMNS_PER_BLOCK if columns == self._ffn else -(-columns // self._mlp.units)
        low, high = self._mlp.columns(columns, block)
        return low * factor, high * factor

    def _qkv_intervals(self, name: str, size: int) -> Intervals:
        keys = self._kv.units * self.head_dims[0]
        queries = int(self._config.num_attention_heads) * self.head_dims[0]
        if size != queries + 2 * keys:
            raise EngineError(f"{name} of size {size} is not queries, keys and values.")
        low, high = self._kv.columns(queries, queries // self._kv.units)
        key_low, key_high = self._kv.columns(keys, self.head_dims[0])
        starts = (queries, queries + keys)
        return ((low, high), *((start + key_low, start + key_high) for start in starts))

    def _tell_heads(self, attention: Any) -> None:
        """Tell an attention that slices its fused projection how many heads are left."""
        kept = self._kv.high - self._kv.low
        group = int(self._config.num_attention_heads) // self._kv.units
        if hasattr(attention, "split_size"):  # gpt2
            attention.split_size = kept * self.head_dims[0]
            return
        config = copy.copy(attention.config)  # phi3
        config.num_attention_heads = kept * group
        attention.config = config
        attention.num_key_value_heads = kept

    def _reduce(self, layer: nn.Module, name: str) -> None:
        """Note the module whose output is summed; replace what holds nothing by zeros."""
        share = self._kv if is_attention(name) else self._mlp
        module = layer.get_submodule(name)
        if share.low == share.high:
            owner = name if name.endswith("experts") else name.rpartition(".")[0]
            module = Absent(is_attention=is_attention(name))
            layer.set_submodule(owner, module)
            prefix = next(n for n, m in self._stage.model.named_modules() if m is module)
            gone = [each for each in self.cuts if each.startswith(f"{prefix}.")]
            for each in gone:
                del self.cuts[each]
            self.zeroed -= {each for each in self.zeroed if each.startswith(f"{prefix}.")}
        self.reduced.append(module)

    def hook(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Sum the outputs of row-cut modules over the ranks."""

        def add_up(module: nn.Module, inputs: object, output: object) -> object:
            if isinstance(output, tuple):
                return (reduce(output[0]), *output[1:])
            return reduce(cast("torch.Tensor", output))

        for module in self.reduced:
            module.register_forward_hook(add_up)


def _share(what: str, bounds: tuple[int, ...], rank: int, units: int) -> Share:
    if bounds[-1] != units:
        raise EngineError(f"The bounds {bounds} must end at the model's {units} {what}.")
    low, high = bounds[rank], bounds[rank + 1]
    return Share(low, high, units, is_first=low == 0 < high)


def _tell_sizes(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    if isinstance(module, Conv1D):
        module.nx, module.nf = module.weight.shape


def _has(layer: nn.Module, name: str) -> bool:
    return any(each == name for each, _ in layer.named_modules())
