"""Tensors to bytes and back: the same bits, and a body that does not fit is the peer's error."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import LocalProtocolError, RemoteProtocolError
from swarm.tensors import DTYPES, ids_of_bytes, ids_to_bytes, rows_of_bytes, rows_to_bytes


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
    [("f64", 8, 1), ("", 8, 1), ("f32", 0, 1), ("f32", 10, 1), ("f32", 12, 2), ("f32", 8, 0)],
)
def test_a_body_that_does_not_fit_is_the_peers_error(name: str, size: int, tokens: int) -> None:
    with pytest.raises(RemoteProtocolError):
        rows_of_bytes(name, bytes(size), tokens)
