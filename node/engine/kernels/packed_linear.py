"""Linears whose weights oneDNN has laid out for its own kernels: two times as fast for few rows.

The plain kernels lay a float32 weight out anew in every call, which pays for long prompts only. A
packed weight still knows its shape, dtype and bytes; `to_dense()` gives the plain one back.
"""

from functools import cache
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from node.engine.kernels.row_padding import FEWEST_ROWS, rows_to_pad

SMALLEST = 16  # rows and columns; smaller linears (gates) stay as they are
ROWS = 8  # that the layout is best for; it serves every number of rows
CACHED_WEIGHTS = 1 << 18  # at most so many come from the core's own cache
ZERO = 128  # what oneDNN's kernels call zero: their rows are unsigned


class PackedLinear(nn.Linear):
    """A float32 linear layer on the CPU with its weight [outputs, inputs] packed."""

    padded_rows: frozenset[int] = frozenset()  # so many are faster with empty ones beside them

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # torch's own name for it
        """Multiply: [..., outputs]."""
        rows = input.shape[-2]
        if rows not in self.padded_rows:
            return self.multiply(input)
        padded = functional.pad(input, (0, 0, 0, FEWEST_ROWS - rows))
        return self.multiply(padded)[..., :rows, :]

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply as many rows as there are."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(
            rows, self.weight, self.bias, "none", [], ""
        )
        return product


def pack_layer(layer: nn.Module) -> None:
    """Pack the loaded float32 linears of a layer in place: hooks and names stay theirs."""
    if not _has_onednn():
        return
    for linear in linears_of(layer):
        weight = linear.weight
        if weight.dtype == torch.float32 and weight.device.type == "cpu":
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
            linear.__class__ = PackedLinear
            linear.weight = nn.Parameter(packed, requires_grad=False)
            _choose_padding(cast("PackedLinear", linear))


def _choose_padding(linear: PackedLinear) -> None:
    if linear.in_features * linear.out_features > CACHED_WEIGHTS:
        sizes = linear.in_features, linear.out_features
        linear.padded_rows = rows_to_pad(linear.multiply, *sizes)


def linears_of(layer: nn.Module) -> list[nn.Linear]:
    """The plain linears of a module that are worth another form, the module itself included."""
    return [
        module
        for module in layer.modules()
        if type(module) is nn.Linear and min(module.weight.shape) >= SMALLEST
    ]


def pack_integers(weight: torch.Tensor) -> torch.Tensor:
    """Lay an int8 weight [outputs, inputs] out for `multiply_integers`: [inputs, outputs]."""
    packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
    return packed


def multiply_integers(
    rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor
) -> torch.Tensor:
    """Multiply uint8 rows [rows, inputs], each value `ZERO` too large, and scale every output.

    The sums are exact integers; the result is float32 [rows, outputs].
    """
    product: torch.Tensor = torch.ops.onednn.qlinear_pointwise.default(
        *(rows, 1.0, ZERO, weight, scale, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    )
    return product


@cache
def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


@cache
def can_multiply_integers() -> bool:
    """Whether this CPU's kernels sum the largest products exactly: some saturate."""
    if not _has_onednn():
        return False
    weight = torch.full((SMALLEST, 4 * SMALLEST), 127, dtype=torch.int8)
    rows = torch.full((2, 4 * SMALLEST), 255, dtype=torch.uint8)
    scale, zeros = torch.ones(SMALLEST), torch.zeros(SMALLEST, dtype=torch.int64)
    found = multiply_integers(rows, pack_integers(weight), scale, zeros)
    return bool((found == 4.0 * SMALLEST * 127 * (255 - ZERO)).all())
