"""Tensors to bytes and back: raw little-endian rows, int8 with one scale per row as an option."""

import torch

from swarm.errors import LocalProtocolError, RemoteProtocolError

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
NARROW = "i8"
SCALE_BYTES = 4  # before the values of each row: a body may be cut between any two rows
LEVELS = 127  # of a sign: the row's largest value becomes 127
SMALLEST, LARGEST = 2.0**-100, 2.0**100  # of the largest values of rows that int8 suits


def rows_to_bytes(rows: torch.Tensor, *, narrow: bool = False) -> tuple[str, memoryview]:
    """Hidden rows [tokens, hidden] as (dtype name, bytes); copies only off the CPU.

    Narrow ones are int8, each value off by at most 1/254 of its row's largest one. Rows that int8
    cannot hold so well (not finite, or close to the limits of float32) stay as they are.
    """
    name = NAMES.get(rows.dtype)
    if name is None:
        raise LocalProtocolError(f"Rows of {rows.dtype} do not travel.")
    if narrow and (packed := _packed(rows.detach().float())) is not None:
        return NARROW, _bytes_of(packed)
    return name, _bytes_of(rows.detach())


def rows_of_bytes(name: str, data: bytes | memoryview, tokens: int) -> torch.Tensor:
    """Hidden rows [tokens, hidden] of a body; raises RemoteProtocolError if they do not fit."""
    dtype = torch.uint8 if name == NARROW else DTYPES.get(name)
    if dtype is None or tokens < 1:
        raise RemoteProtocolError(f"Rows of dtype {name[:8]!r} are not understood.")
    if not len(data) or len(data) % (tokens * dtype.itemsize):
        raise RemoteProtocolError(f"A body of {len(data)} bytes does not hold {tokens} rows.")
    rows = torch.frombuffer(bytearray(data), dtype=dtype).view(tokens, -1)
    return _unpacked(rows) if name == NARROW else rows


def _packed(rows: torch.Tensor) -> torch.Tensor | None:
    """Bytes [tokens, SCALE_BYTES + hidden] of float32 rows; None if int8 does not suit them."""
    peaks = rows.abs().amax(1, keepdim=True)  # [tokens, 1]
    suits = (peaks == 0) | ((peaks >= SMALLEST) & (peaks <= LARGEST))  # nothing suits a NaN
    if not bool(suits.all()):
        return None
    scales = peaks / LEVELS
    values = (rows / torch.where(peaks == 0, 1.0, scales)).round_().to(torch.int8)
    return torch.cat([scales.view(torch.uint8), values.view(torch.uint8)], dim=1)


def _unpacked(packed: torch.Tensor) -> torch.Tensor:
    """Float32 rows of bytes [tokens, SCALE_BYTES + hidden]; raises RemoteProtocolError."""
    if packed.shape[1] <= SCALE_BYTES:
        raise RemoteProtocolError("An int8 row holds no value besides its scale.")
    scales = packed[:, :SCALE_BYTES].flatten().view(torch.float32)[:, None]  # [tokens, 1]
    if not bool(((scales >= 0) & (scales <= LARGEST)).all()):
        raise RemoteProtocolError("The scale of an int8 row is negative, too large or no number.")
    return packed[:, SCALE_BYTES:].view(torch.int8).float().mul_(scales)


def _bytes_of(rows: torch.Tensor) -> memoryview:
    flat = rows.contiguous().cpu().view(torch.uint8).reshape(-1)
    return flat.numpy().data
