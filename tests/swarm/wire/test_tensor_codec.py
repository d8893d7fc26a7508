"""Tensors to bytes and back: the same bits, and a body that does not fit is the peer's error."""

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import LocalProtocolError, RemoteProtocolError
from swarm.wire.tensor_codec import DTYPES, LARGEST, SMALLEST, rows_of_bytes, rows_to_bytes
from swarm.wire.token_ids import ids_of_bytes, ids_to_bytes

VALUES = st.floats(-LARGEST, LARGEST, width=32)
ROW_SETS = st.integers(1, 12).flatmap(
    lambda hidden: st.lists(st.lists(VALUES, min_size=hidden, max_size=hidden), min_size=1)
)
HALF_LEVEL = 1 / 254  # of a row's largest value
ROUNDING = 1 + 1e-4  # three float32 operations on at most 127 levels


@given(st.lists(st.integers(0, 2**31 - 1)))
def test_ids_come_back(ids: list[int]) -> None:
    assert ids_of_bytes(ids_to_bytes(ids)) == ids


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_broken_length_of_ids_is_the_peers_error(size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        ids_of_bytes(bytes(size))


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("tokens", [1, 3])
def test_rows_come_back_bit_for_bit(name: str, tokens: int) -> None:
    rows = torch.randn(tokens, 8, generator=torch.Generator().manual_seed(0)).to(DTYPES[name])
    found_name, body = rows_to_bytes(rows)
    found = rows_of_bytes(found_name, bytes(body), tokens)
    assert found_name == name
    assert body.nbytes == rows.numel() * rows.element_size()
    assert found.dtype == rows.dtype
    assert torch.equal(found, rows)


def test_a_view_with_gaps_travels_as_whole_rows() -> None:
    rows = torch.arange(24.0).view(4, 6)[::2, ::3]
    _, body = rows_to_bytes(rows)
    assert torch.equal(rows_of_bytes("f32", bytes(body), 2), rows)


def test_received_rows_may_be_written_to() -> None:
    _, body = rows_to_bytes(torch.zeros(1, 4))
    rows_of_bytes("f32", bytes(body), 1).add_(1)


def test_rows_of_a_foreign_dtype_do_not_travel() -> None:
    with pytest.raises(LocalProtocolError):
        rows_to_bytes(torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        *(("f64", 8, 1), ("", 8, 1), ("f32", 0, 1), ("f32", 10, 1), ("f32", 12, 2), ("f32", 8, 0)),
        *(("i8", 0, 1), ("i8", 4, 1), ("i8", 8, 2), ("i8", 11, 2), ("i8", 8, 0), ("i8x", 8, 1)),
    ],
)
def test_a_body_that_does_not_fit_is_the_peers_error(name: str, size: int, tokens: int) -> None:
    with pytest.raises(RemoteProtocolError):
        rows_of_bytes(name, bytes(size), tokens)


# ---------------------------------------------------------------- int8


@given(ROW_SETS)
def test_an_int8_value_is_off_by_at_most_half_a_level_of_its_row(values: list[list[float]]) -> None:
    rows = torch.tensor(values)
    name, body = rows_to_bytes(rows, narrow=True)
    found = rows_of_bytes(name, bytes(body), len(rows))
    peaks = rows.double().abs().amax(1, keepdim=True)
    off = (found.double() - rows.double()).abs()
    assert bool((off <= peaks * HALF_LEVEL * ROUNDING).all())
    suits = bool(((peaks == 0) | (peaks >= SMALLEST)).all())
    assert name == ("i8" if suits else "f32")


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_int8_rows_take_a_byte_a_value_and_four_a_row(dtype: torch.dtype) -> None:
    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    name, body = rows_to_bytes(rows, narrow=True)
    assert (name, body.nbytes) == ("i8", 3 * 68)
    found = rows_of_bytes(name, body, 3)
    assert (found.shape, found.dtype) == (rows.shape, torch.float32)
    levels = (found / (rows.float().abs().amax(1, keepdim=True) / 127)).round()
    assert levels.abs().amax(1).tolist() == [127, 127, 127]
    assert len(set(levels.flatten().tolist())) > 50


def test_rows_of_zeros_and_of_levels_come_back_exactly() -> None:
    levels = torch.arange(-127.0, 128.0)
    rows = torch.stack([torch.zeros(255), levels, 0.25 * levels, -(2.0**40) * levels])
    name, body = rows_to_bytes(rows, narrow=True)
    assert name == "i8"
    assert torch.equal(rows_of_bytes(name, body, 4), rows)


def test_each_int8_row_stands_by_itself() -> None:
    """A body is cut between rows where a prompt's chunk is cut to short steps."""
    rows = (
        torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
        * torch.logspace(-6, 6, 5)[:, None]
    )
    name, body = rows_to_bytes(rows, narrow=True)
    whole, width = rows_of_bytes(name, body, 5), 20
    parts = [rows_of_bytes(name, body[: 2 * width], 2), rows_of_bytes(name, body[2 * width :], 3)]
    assert torch.equal(torch.cat(parts), whole)
    assert bytes(rows_to_bytes(rows[3:4], narrow=True)[1]) == bytes(body[3 * width : 4 * width])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, 1e-38, 1e-45])
def test_rows_that_int8_cannot_hold_travel_bit_for_bit(value: float) -> None:
    rows = torch.ones(3, 4)
    rows[1] = value
    name, body = rows_to_bytes(rows, narrow=True)
    assert name == "f32"
    assert torch.equal(rows_of_bytes(name, body, 3).view(torch.int32), rows.view(torch.int32))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -1.0, -1e-45, 3e38])
@pytest.mark.parametrize("row", [0, 1])
def test_a_hostile_scale_is_the_peers_error(scale: float, row: int) -> None:
    parts = [struct.pack("<f", 1.0) + bytes(4), struct.pack("<f", 1.0) + bytes(4)]
    parts[row] = struct.pack("<f", scale) + bytes([1, 2, 3, 4])
    with pytest.raises(RemoteProtocolError):
        rows_of_bytes("i8", b"".join(parts), 2)


@given(st.binary(min_size=6, max_size=60), st.integers(1, 5))
def test_any_bytes_are_refused_or_are_finite_rows(data: bytes, tokens: int) -> None:
    try:
        found = rows_of_bytes("i8", data, tokens)
    except RemoteProtocolError:
        return
    assert found.shape == (tokens, len(data) // tokens - 4)
    assert bool(found.isfinite().all())
    packed = np.frombuffer(data, dtype=np.uint8).reshape(tokens, -1)
    scales = packed[:, :4].copy().view("<f4")
    assert np.array_equal(found.numpy(), packed[:, 4:].view(np.int8).astype("<f4") * scales)
