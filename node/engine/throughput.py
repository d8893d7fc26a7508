"""How fast this device is on one model's own shapes: bytes per second in decode, FLOP/s in prefill.

Decode reads every weight once per token, so it is bound by bytes; prefill reuses them, so it is
bound by arithmetic. Both are the medians of a bounded run over one MLP matrix of the model.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from node.engine.kernels.packed_linear import pack_layer
from swarm.checkpoint.folder import load_config
from swarm.hardware import WIDEST
from swarm.model_spec import ModelSpec
from swarm.wire.tensor_codec import DTYPES

SLICE_BYTES = 64 << 20  # of one weight matrix, at most
CACHE_BYTES = 48 << 20  # decode walks over at least this much, so that no cache answers
PREFILL_BYTES = 16 << 20  # of the matrix that prefill multiplies by, at most
PREFILL_TOKENS = 128
FEWEST_ROUNDS = 3
WIDTH = 4.0  # bytes of a float32
SLICE_SHARE = 4 / 128  # of a weight: every rank has scales of its own for blocks of 128 columns


def measure(
    spec: ModelSpec,
    *,
    threads: int,
    seconds: float = 1.0,
    dtype: str = WIDEST,
    quant: str = "",
    device: str = "cpu",
) -> tuple[float, float]:
    """Return (bytes per second, FLOP per second); takes about `seconds`, and restores threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            like = torch.empty(0, dtype=DTYPES[dtype], device=device)
            return _measure(spec, seconds / 2, like, quant)
    finally:
        torch.set_num_threads(before)


def _measure(
    spec: ModelSpec, seconds: float, like: torch.Tensor, quant: str
) -> tuple[float, float]:
    row_bytes = spec.hidden * like.element_size()
    rows = max(1, min(spec.ffn, SLICE_BYTES // row_bytes))
    copies = -(-CACHE_BYTES // (rows * row_bytes))
    linears = [_linear(spec.hidden, rows, like, quant) for _ in range(min(copies, 64))]
    matrix_bytes = linears[0].weight.numel() * linears[0].weight.element_size()
    one = like.new_ones(1, spec.hidden)
    many = like.new_ones(PREFILL_TOKENS, spec.hidden)

    def decode() -> None:
        for linear in linears:
            linear(one)

    columns = max(1, min(rows, PREFILL_BYTES // row_bytes))
    part = _linear(spec.hidden, columns, like, quant)

    def prefill() -> None:
        part(many)

    decode_seconds = _median_seconds(decode, seconds, like.device)
    prefill_seconds = _median_seconds(prefill, seconds, like.device)
    operations = 2.0 * PREFILL_TOKENS * part.weight.numel()
    return len(linears) * matrix_bytes / decode_seconds, operations / prefill_seconds


def _linear(inputs: int, outputs: int, like: torch.Tensor, quant: str) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=False, dtype=like.dtype, device=like.device)
    if quant == "int8":
        from node.engine.kernels.int8_linear import quantise_layer  # numba: half a second

        quantise_layer(linear)
    pack_layer(linear)
    return linear


def _median_seconds(run: Callable[[], None], seconds: float, device: torch.device) -> float:
    run()  # warm up
    times: list[float] = []
    ends_at = time.perf_counter() + seconds
    while len(times) < FEWEST_ROUNDS or time.perf_counter() < ends_at:
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def bytes_per_weight(folder: Path, quant: str) -> float:
    """Bytes of a weight in the layer of a model that shrinks least; raises BadModel."""
    if quant != "int8":
        return WIDTH
    from node.engine.stage_model import build_stage_model  # transformers' models: seconds

    config = load_config(folder)
    every = range(int(config.num_hidden_layers))
    stage = build_stage_model(config, every, torch.float32, has_head=False)
    return max(_width_of(layer) for layer in stage.layer_names().values())


def _width_of(layer: nn.Module) -> float:
    from node.engine.kernels.int8_linear import saved_bytes

    weights = sum(each.numel() for each in layer.parameters())
    return min(WIDTH, WIDTH - saved_bytes(layer) / weights + SLICE_SHARE)
