"""Log-probabilities survive the wire, and what cannot be is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import RemoteProtocolError
from swarm.wire.token_logprobs import (
    LEAST_LOGPROB,
    MOST_TOP,
    TokenLogprobs,
    logprob_bytes,
    logprobs_of_bytes,
    logprobs_to_bytes,
)

VOCAB = 100


def body_of(values: object, ids: object) -> bytes:
    return logprobs_to_bytes(np.array(values, np.float32), np.array(ids, np.int64))


@given(st.integers(1, 16), st.integers(0, MOST_TOP), st.integers(0, 1 << 31))
def test_they_survive_the_wire(tokens: int, top: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    values = draw.uniform(-20, 0, (tokens, 1 + top)).astype(np.float32)
    ids, drawn = draw.integers(0, VOCAB, (tokens, top)), draw.integers(0, VOCAB, tokens).tolist()
    body = logprobs_to_bytes(values, ids)
    assert len(body) == logprob_bytes(tokens, top) <= 16 * 41 * 4
    told = logprobs_of_bytes(body, drawn, top, VOCAB)
    assert [each.id for each in told] == drawn
    assert [each.logprob for each in told] == values[:, 0].tolist()
    assert [[pair[0] for pair in each.top] for each in told] == ids.tolist()
    assert [[pair[1] for pair in each.top] for each in told] == values[:, 1:].tolist()


def test_they_read_as_plain_values() -> None:
    (told,) = logprobs_of_bytes(body_of([[-1.5, -0.5]], [[7]]), [3], 1, VOCAB)
    assert told == TokenLogprobs(3, -1.5, ((7, -0.5),))
    assert told.to_json() == {"id": 3, "logprob": -1.5, "top": [[7, -0.5]]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(11),
        bytes(16),
        body_of([[0.1, -1.0]], [[7]]),
        body_of([[float("nan"), -1.0]], [[7]]),
        body_of([[-1.0, float("-inf")]], [[7]]),
        body_of([[2 * LEAST_LOGPROB, -1.0]], [[7]]),
        body_of([[-1.0, -1.0]], [[VOCAB]]),
        body_of([[-1.0, -1.0]], [[-1]]),
    ],
)
def test_what_cannot_be_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="log-probabilities"):
        logprobs_of_bytes(body, [3], 1, VOCAB)
