"""Log-probabilities of drawn tokens: how they travel in the body of a TOKEN, and what they are.

For each id its own one and those of the likeliest `top` ids: first all values (float32, the own
one before the others), then the likeliest ids (int32), little endian, token after token.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from swarm.errors import RemoteProtocolError

MOST_TOP = 20  # likeliest ids told of each token
LEAST_LOGPROB = -9999.0  # said of what is impossible: JSON has no infinity
ROUNDING = 1e-3  # a logarithm of a probability may be above 0 by so much
VALUE_BYTES = 4


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What the model thought of one token, before any option changed its scores."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # the likeliest ids, the likeliest first

    def to_json(self) -> dict[str, Any]:
        """All of it in plain values."""
        return {"id": self.id, "logprob": self.logprob, "top": [list(pair) for pair in self.top]}


def logprobs_to_bytes(values: npt.NDArray[np.float32], ids: npt.NDArray[np.integer]) -> bytes:
    """The body of values [tokens, 1 + top] and likeliest ids [tokens, top]."""
    return values.astype("<f4").tobytes() + ids.astype("<i4").tobytes()


def logprob_bytes(tokens: int, top: int) -> int:
    """The size of the body of so many tokens."""
    return VALUE_BYTES * tokens * (1 + 2 * top)


def logprobs_of_bytes(
    body: bytes | memoryview, tokens: list[int], top: int, vocab: int
) -> tuple[TokenLogprobs, ...]:
    """What a body says of these tokens; raises RemoteProtocolError if that cannot be."""
    if len(body) != logprob_bytes(len(tokens), top):
        raise RemoteProtocolError(f"{len(body)} bytes of log-probabilities")
    split = VALUE_BYTES * len(tokens) * (1 + top)
    values = np.frombuffer(body[:split], "<f4").reshape(len(tokens), 1 + top)
    ids = np.frombuffer(body[split:], "<i4").reshape(len(tokens), top)
    are_possible = bool(((values >= LEAST_LOGPROB) & (values <= ROUNDING)).all())
    if not are_possible or ids.min(initial=0) < 0 or ids.max(initial=0) >= vocab:
        raise RemoteProtocolError("log-probabilities that cannot be")
    return tuple(
        TokenLogprobs(token, own, tuple(zip(likeliest, others, strict=True)))
        for token, (own, *others), likeliest in zip(
            tokens, values.tolist(), ids.tolist(), strict=True
        )
    )
