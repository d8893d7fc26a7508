"""Tensors to bytes and back: raw little-endian rows, int8 with one scale per row as an option."""

import numpy as np
import torch

from swarm.errors import LocalProtocolError, RemoteProtocolError

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def ids_to_bytes(ids: list[int]) -> bytes:
    """Token ids as int32."""
    return np.asarray(ids, dtype="<i4").tobytes()


def ids_of_bytes(data: bytes | memoryview) -> list[int]:
    """Token ids of an int32 body; raises RemoteProtocolError on a broken length."""
    if len(data) % 4:
        raise RemoteProtocolError("A body of token ids is not a multiple of 4 bytes.")
    return [int(value) for value in np.frombuffer(data, dtype="<i4")]


def rows_to_bytes(rows: torch.Tensor) -> tuple[str, memoryview]:
    """Hidden rows [tokens, hidden] as (dtype name, bytes); copies only off the CPU."""
    name = NAMES.get(rows.dtype)
    if name is None:
        raise LocalProtocolError(f"Rows of {rows.dtype} do not travel.")
    flat = rows.detach().contiguous().cpu().view(torch.uint8).reshape(-1)
    return name, flat.numpy().data


def rows_of_bytes(name: str, data: bytes | memoryview, tokens: int) -> torch.Tensor:
    """Hidden rows [tokens, hidden] of a body; raises RemoteProtocolError if they do not fit."""
    dtype = DTYPES.get(name)
    if dtype is None or tokens < 1:
        raise RemoteProtocolError(f"Rows of dtype {name[:8]!r} are not understood.")
    if not len(data) or len(data) % (tokens * dtype.itemsize):
        raise RemoteProtocolError(f"A body of {len(data)} bytes does not hold {tokens} rows.")
    flat = torch.frombuffer(bytearray(data), dtype=dtype)
    return flat.view(tokens, -1)
