"""Packed linears give what plain ones give, know their bytes, and can be unpacked."""

import pytest
import torch
from torch import nn

from node.engine.kernels import packed_linear
from node.engine.kernels.packed_linear import (
    CACHED_WEIGHTS,
    PackedLinear,
    can_multiply_integers,
    multiply_integers,
    pack_integers,
    pack_layer,
)

LARGE = (1024, CACHED_WEIGHTS // 512)  # its weight comes from memory: few rows are padded


def packed(inputs: int, outputs: int, *, bias: bool) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain, layer = nn.Linear(inputs, outputs, bias=bias), nn.Linear(inputs, outputs, bias=bias)
    layer.load_state_dict(plain.state_dict())
    pack_layer(layer)
    assert type(layer) is PackedLinear
    return plain, layer


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 3, 4, 17])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 1000), (33, 47), LARGE])
def test_products_are_those_of_the_plain_layer(rows: int, inputs: int, outputs: int) -> None:
    plain, layer = packed(inputs, outputs, bias=True)
    for hidden in (torch.randn(1, rows, inputs), torch.randn(rows, 2 * inputs)[:, ::2]):
        assert layer(hidden).shape == (*hidden.shape[:-1], outputs)
        assert torch.allclose(layer(hidden), plain(hidden), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("padded", [frozenset[int](), frozenset({1, 2, 3})])
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_few_rows_are_padded_where_that_is_faster(
    rows: int, padded: frozenset[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_linear, "rows_to_pad", lambda *_: padded)
    plain, layer = packed(*LARGE, bias=False)
    multiplied: list[int] = []

    def multiply(some: torch.Tensor) -> torch.Tensor:
        multiplied.append(len(some))
        return PackedLinear.multiply(layer, some)  # type: ignore[arg-type]

    monkeypatch.setattr(layer, "multiply", multiply)
    hidden = torch.randn(rows, LARGE[0])
    torch.testing.assert_close(layer(hidden), plain(hidden), rtol=1e-5, atol=1e-5)
    assert multiplied == [4 if rows in padded else rows]


@torch.inference_mode()
def test_a_padded_row_is_what_it_is_among_three_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "rows_to_pad", lambda *_: frozenset({1, 2, 3}))
    _, layer = packed(*LARGE, bias=False)
    hidden = torch.randn(4, LARGE[0])
    assert torch.equal(layer(hidden[:1]), layer(torch.cat([hidden[:1], hidden[1:] * 0]))[:1])


def test_a_weight_that_the_cache_holds_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "rows_to_pad", lambda *_: pytest.fail("measured"))
    _, layer = packed(512, CACHED_WEIGHTS // 512, bias=False)
    assert layer(torch.ones(1, 512)).shape == (1, CACHED_WEIGHTS // 512)


def test_a_packed_weight_knows_its_bytes_and_can_be_unpacked() -> None:
    plain, layer = packed(64, 48, bias=False)
    assert layer.weight.numel() * layer.weight.element_size() == 4 * 64 * 48
    assert torch.equal(layer.weight.to_dense(), plain.weight)


def test_other_dtypes_and_small_gates_stay_plain() -> None:
    layer = nn.Sequential(nn.Linear(64, 64, dtype=torch.bfloat16), nn.Linear(64, 2))
    pack_layer(layer)
    assert [type(each) for each in layer] == [nn.Linear, nn.Linear]


def test_without_onednn_everything_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "_has_onednn", lambda: False)
    layer = nn.Linear(64, 64)
    pack_layer(layer)
    assert type(layer) is nn.Linear


@pytest.mark.skipif(not can_multiply_integers(), reason="this CPU's integer kernels saturate")
def test_integer_products_are_exact() -> None:
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (48, 33), dtype=torch.int8)
    rows = torch.randint(-127, 128, (5, 33))
    scale, zeros = torch.rand(48), torch.zeros(48, dtype=torch.int64)
    moved = (rows + packed_linear.ZERO).to(torch.uint8)
    found = multiply_integers(moved, pack_integers(weight), scale, zeros)
    assert torch.equal(found, (rows @ weight.t().long()).float() * scale)
