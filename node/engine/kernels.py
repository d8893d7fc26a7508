"""Small kernels for steps of few rows on a CPU, compiled by numba when first called, then cached.

Between two products a step of a decode has little to compute: as a chain of torch's operations it
costs more than the products, since each of them finds the processor's caches emptied by the
product before. All arrays are float32 and contiguous unless said otherwise.
"""

from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, np.dtype[Any]]

OPTIONS: dict[str, Any] = {
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz", "afn"},  # NaN and infinity stay themselves
}
LOG2_E = np.float32(1.4426950408889634)
LEAST_EXPONENT = np.float32(-126)
# 2^f for f in [-0.5, 0.5]: the first terms of its Taylor series, exact to 1e-7
P1, P2, P3 = (
    np.float32(0.6931471805599453),
    np.float32(0.2402265069591),
    np.float32(0.0555041086648),
)
P4, P5 = np.float32(0.00961812910763), np.float32(0.00133335581464)
P6 = np.float32(0.000154035303934)
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
BIAS, MANTISSA_BITS = np.int32(127), np.int32(23)
LEVELS, LEAST_TOP = np.float32(127), np.float32(1e-8)


@njit(inline="always", **OPTIONS)  # type: ignore[untyped-decorator]
def _exp_of_negative(value: Any) -> Any:
    """e^value for value <= 0 without a call, so that loops around it run on vectors."""
    exponent = max(value * LOG2_E, LEAST_EXPONENT)
    whole = np.int32(exponent - HALF)
    f = exponent - np.float32(whole)
    power = ((((((P6 * f + P5) * f + P4) * f + P3) * f + P2) * f) + P1) * f + ONE
    return power * np.int32((whole + BIAS) << MANTISSA_BITS).view(np.float32)


@njit(**OPTIONS)  # type: ignore[untyped-decorator]
def add_norm(hidden: Array, added: Array, weight: Array, epsilon: Any, out: Array) -> None:
    """Add to hidden [rows, width] in place and write its RMS norm to `out`; `added` may be empty.

    Zhang and Sennrich 2019, eq. 4: x / sqrt(mean(x^2) + epsilon) * weight.
    """
    rows, width = hidden.shape
    for row in range(rows):
        total = ZERO
        if len(added):
            for at in range(width):
                value = hidden[row, at] + added[row, at]
                hidden[row, at] = value
                total += value * value
        else:
            for at in range(width):
                total += hidden[row, at] * hidden[row, at]
        factor = ONE / np.sqrt(total / np.float32(width) + epsilon)
        for at in range(width):
            out[row, at] = hidden[row, at] * factor * weight[at]


@njit(**OPTIONS)  # type: ignore[untyped-decorator]
def gate(both: Array, out: Array) -> None:
    """SwiGLU of Shazeer 2020: silu(gate) * up, from [rows, 2 x width] with the gate first."""
    rows, width = out.shape
    for row in range(rows):
        for at in range(width):
            value = both[row, at]
            small = _exp_of_negative(-abs(value))
            share = (ONE if value >= ZERO else small) / (ONE + small)
            out[row, at] = value * share * both[row, width + at]


@njit(**OPTIONS)  # type: ignore[untyped-decorator]
def quantise(rows: Array, whole: Array, tops: Array) -> None:
    """Round rows [rows, width] to uint8 `whole`, 128 too large each; `tops` [rows, 1] is 127's."""
    count, width = rows.shape
    for row in range(count):
        top = LEAST_TOP
        for at in range(width):
            top = max(top, abs(rows[row, at]))
        tops[row, 0] = top
        for at in range(width):
            whole[row, at] = np.uint8(LEVELS * rows[row, at] / top + np.float32(128.5))


@njit(**OPTIONS)  # type: ignore[untyped-decorator]
def _norm_head(head: Array, weight: Array, epsilon: Any) -> None:
    total = ZERO
    for at in range(len(head)):
        total += head[at] * head[at]
    factor = ONE / np.sqrt(total / np.float32(len(head)) + epsilon)
    for at in range(len(head)):
        head[at] *= factor * weight[at]


@njit(**OPTIONS)  # type: ignore[untyped-decorator]
def _rotate(head: Array, cos: Array, sin: Array, factor: Any, out: Array) -> None:
    """Rotary embedding of one head (Su et al. 2021, eq. 34, halves instead of pairs), scaled."""
    half = len(head) // 2
    for at in range(half):
        low, high = head[at], head[half + at]
        out[at] = (low * cos[at] - high * sin[at]) * factor
        out[half + at] = (high * cos[half + at] + low * sin[half + at]) * factor


@njit(**OPTIONS)  # type: ignore[untyped-decorator]
def _score(query: Array, keys: Array, first: Any, end: Any, scores: Array) -> Any:
    """Write query x keys for rows [first, end) and return the largest; four rows at once."""
    width = len(query)
    row = first
    while row + 4 <= end:
        a = b = c = d = ZERO
        for at in range(width):
            value = query[at]
            a += value * keys[row, at]
            b += value * keys[row + 1, at]
            c += value * keys[row + 2, at]
            d += value * keys[row + 3, at]
        scores[row], scores[row + 1], scores[row + 2], scores[row + 3] = a, b, c, d
        row += 4
    while row < end:
        a = ZERO
        for at in range(width):
            a += query[at] * keys[row, at]
        scores[row] = a
        row += 1
    top = scores[first]
    for row in range(first, end):
        top = max(top, scores[row])
    return top


@njit(**OPTIONS)  # type: ignore[untyped-decorator]
def _weigh(scores: Array, top: Any, values: Array, first: Any, end: Any, out: Array) -> None:
    """Write the softmax of scores [first, end) x values; four rows at once."""
    width = len(out)
    total = ZERO
    for row in range(first, end):
        scores[row] = _exp_of_negative(scores[row] - top)
        total += scores[row]
    for at in range(width):
        out[at] = ZERO
    row = first
    while row + 4 <= end:
        a, b, c, d = scores[row], scores[row + 1], scores[row + 2], scores[row + 3]
        for at in range(width):
            low = a * values[row, at] + b * values[row + 1, at]
            out[at] += low + c * values[row + 2, at] + d * values[row + 3, at]
        row += 4
    while row < end:
        for at in range(width):
            out[at] += scores[row] * values[row, at]
        row += 1
    for at in range(width):
        out[at] /= total


@njit(**OPTIONS)  # type: ignore[untyped-decorator]
def attend(
    heads: Array,  # [rows, query heads + 2 x kv heads, head dim]: queries, keys, values
    where: Any,  # places as in FewRows, cos and sin: [rows, head dim]
    arenas: Any,  # keys and values of one layer: [tokens x kv heads x head dim]
    norms: Any,  # weights of query and key norm, [head dim] or empty, and their epsilon
    shape: Any,  # kv heads, window (0: none), factor of the scores
    out: Array,  # [rows, query heads, head dim]
) -> None:
    """Write the rows' keys and values, attend row by row, each up to its own position.

    Rows of one session must come in order: the later see the earlier.
    """
    places, cos, sin = where
    query_norm, key_norm, epsilon = norms
    kv_heads, window, factor = shape
    rows, query_heads, head_dim = out.shape
    group = query_heads // kv_heads
    query = np.empty(head_dim, np.float32)
    scores = np.empty(places[:, 2].max() + 1, np.float32)
    for row in range(rows):
        start, size, position = places[row]
        end, first = position + 1, np.int64(0)
        if window > 0:
            first = max(first, end - window)
        for kv_head in range(kv_heads):
            low = (start * kv_heads + kv_head * size) * head_dim
            keys = arenas[0][low : low + size * head_dim].reshape(size, head_dim)
            values = arenas[1][low : low + size * head_dim].reshape(size, head_dim)
            key = heads[row, query_heads + kv_head]
            if len(key_norm):
                _norm_head(key, key_norm, epsilon)
            _rotate(key, cos[row], sin[row], ONE, keys[position])
            values[position] = heads[row, query_heads + kv_heads + kv_head]
            for head in range(kv_head * group, (kv_head + 1) * group):
                if len(query_norm):
                    _norm_head(heads[row, head], query_norm, epsilon)
                _rotate(heads[row, head], cos[row], sin[row], factor, query)
                top = _score(query, keys, first, end, scores)
                _weigh(scores, top, values, first, end, out[row, head])
