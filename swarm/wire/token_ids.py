"""Token ids to bytes and back: little-endian int32; no torch."""

import numpy as np
import numpy.typing as npt

from swarm.errors import RemoteProtocolError


def ids_to_bytes(ids: list[int]) -> bytes:
    """Token ids as int32."""
    return np.asarray(ids, dtype="<i4").tobytes()


def ids_array(data: bytes | memoryview) -> npt.NDArray[np.int32]:
    """Token ids of an int32 body, uncopied; raises RemoteProtocolError on a broken length."""
    if len(data) % 4:
        raise RemoteProtocolError("A body of token ids is not a multiple of 4 bytes.")
    return np.frombuffer(data, dtype="<i4")


def ids_of_bytes(data: bytes | memoryview) -> list[int]:
    """Token ids of an int32 body as a list; raises RemoteProtocolError on a broken length."""
    ids: list[int] = ids_array(data).tolist()
    return ids
