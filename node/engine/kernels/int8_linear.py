"""int8 linears for CPUs: weights scaled per output column, activations per row, exact sums.

Sums of int8 products are exact integers, so a row's result does not depend on the batch around it.
"""

import math
from typing import cast

import torch
from torch import nn

from node.engine.kernels.numba_kernels import quantise
from node.engine.kernels.packed_linear import (
    ZERO,
    can_multiply_integers,
    linears_of,
    multiply_integers,
    pack_integers,
)
from node.engine.kernels.small_batch import MOST_ROWS

LEVELS = 127
MOST_CACHED_ROWS = 64


class QuantisedRows:
    """Rows as they were rounded last: the linears of a layer often get the same ones."""

    def __init__(self) -> None:
        self._is_packed = can_multiply_integers()
        self._middle = torch.tensor(ZERO + 0.5)  # cutting off then rounds
        self._rows: torch.Tensor | None = None
        self._found = (torch.empty(0), torch.empty(0))

    def of(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return whole numbers [rows, inputs] as the kernel wants them, and what 127 is worth."""
        if rows is self._rows:
            return self._found
        flat = rows.reshape(-1, rows.shape[-1]).float()
        if self._is_packed and len(flat) <= MOST_ROWS:
            self._rows, self._found = rows, _quantise_few(flat)
            return self._found
        absmax = torch.linalg.vector_norm(flat, math.inf, 1, keepdim=True).clamp_(min=1e-8)
        moved = torch.addcdiv(self._middle, flat, absmax, value=LEVELS)
        if self._is_packed:
            found = moved.to(torch.uint8), absmax
        else:
            found = moved.floor_().sub_(ZERO).to(torch.int8), absmax
        if len(flat) <= MOST_CACHED_ROWS:
            self._rows, self._found = rows, found
        else:
            self._rows = None
        return found


def _quantise_few(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    quantised, absmax = torch.empty(flat.shape, dtype=torch.uint8), torch.empty(len(flat), 1)
    quantise(flat.numpy(), quantised.numpy(), absmax.numpy())
    return quantised, absmax


class Int8Linear(nn.Linear):
    """A linear layer whose weight is int8 [outputs, inputs] with one float32 scale per output.

    The scale is for rows whose largest value is 127.
    """

    scale: nn.Parameter
    quantised: QuantisedRows

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # torch's own name for it
        """Quantise each row, multiply in integers, scale back: [..., outputs]."""
        rows, absmax = self.quantised.of(input)
        out = self._multiply(rows).mul_(absmax).to(input.dtype)
        if self.bias is not None:
            out += self.bias
        return out.view(*input.shape[:-1], self.out_features)

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        sums = torch._int_mm(rows, self.weight.t())
        return sums.float().mul_(self.scale)


class PackedInt8Linear(Int8Linear):
    """The same with the weight packed for oneDNN: [inputs, outputs]; the same bits."""

    zeros: torch.Tensor

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        return multiply_integers(rows, self.weight, self.scale, self.zeros)


def quantise_layer(layer: nn.Module) -> None:
    """Turn the loaded linears of a layer into int8 in place: hooks and names stay theirs."""
    quantised = QuantisedRows()
    for linear in linears_of(layer):
        weight = linear.weight.float()  # [outputs, inputs]
        scale = weight.abs().amax(1).div_(LEVELS).clamp_(min=1e-10)
        rounded = (weight / scale[:, None]).round_().to(torch.int8)
        linear.__class__ = Int8Linear
        if can_multiply_integers():
            linear.__class__ = PackedInt8Linear
            cast("PackedInt8Linear", linear).zeros = torch.zeros(len(scale), dtype=torch.int64)
            rounded = pack_integers(rounded)
        cast("Int8Linear", linear).quantised = quantised
        linear.weight = nn.Parameter(rounded, requires_grad=False)
        scale = nn.Parameter(scale.div_(LEVELS), requires_grad=False)
        cast("Int8Linear", linear).scale = scale


def saved_bytes(layer: nn.Module) -> int:
    """By how much `quantise_layer` will shrink a layer, loaded or on meta."""
    return sum(
        each.weight.numel() * (each.weight.element_size() - 1) - 4 * each.out_features
        for each in linears_of(layer)
    )
