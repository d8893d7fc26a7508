"""Small kernels for steps of few rows on a CPU, compiled by numba when first called, then cached.

Between two products a step of a decode has little to compute: as a chain of torch's operations it
costs more than the products, since each of them finds the processor's caches emptied by the
product before. All arrays are float32 and contiguous unless said otherwise.
"""

from typing import Any

import numpy as np

from node.engine.kernels.kernel_cache import kernel
from node.engine.kv_cache.block_pool import BLOCK_TOKENS
from node.engine.shard_io import Array

OPTIONS: dict[str, Any] = {
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
LEVELS, LEAST_ABSMAX = np.float32(127), np.float32(1e-8)
NO_SINK, NO_SINKS = np.float32(-np.inf), np.empty(0, np.float32)
BLOCK = np.int64(BLOCK_TOKENS)


@kernel(inline="always", **OPTIONS)
def _exp_of_negative(value: Any) -> Any:
    """e^value for value <= 0 without a call, so that loops around it run on vectors."""
    exponent = max(value * LOG2_E, LEAST_EXPONENT)
    integer = np.int32(exponent - HALF)
    f = exponent - np.float32(integer)
    power = ((((((P6 * f + P5) * f + P4) * f + P3) * f + P2) * f) + P1) * f + ONE
    return power * np.int32((integer + BIAS) << MANTISSA_BITS).view(np.float32)


@kernel(**OPTIONS)
def fused_add_rms_norm(
    hidden: Array, added: Array, weight: Array, epsilon: Any, out: Array
) -> None:
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


@kernel(**OPTIONS)
def silu_and_mul(both: Array, out: Array) -> None:
    """SwiGLU of Shazeer 2020: silu(gate) * up, from [rows, 2 x width] with the gate first."""
    rows, width = out.shape
    for row in range(rows):
        for at in range(width):
            value = both[row, at]
            small = _exp_of_negative(-abs(value))
            share = (ONE if value >= ZERO else small) / (ONE + small)
            out[row, at] = value * share * both[row, width + at]


@kernel(**OPTIONS)
def quantise(rows: Array, quantised: Array, absmax: Array) -> None:
    """Round rows [rows, width] to uint8, 128 too large each; 127 is worth `absmax` [rows, 1]."""
    count, width = rows.shape
    for row in range(count):
        top = LEAST_ABSMAX
        for at in range(width):
            top = max(top, abs(rows[row, at]))
        absmax[row, 0] = top
        for at in range(width):
            quantised[row, at] = np.uint8(LEVELS * rows[row, at] / top + np.float32(128.5))


@kernel(**OPTIONS)
def _norm_head(head: Array, weight: Array, epsilon: Any) -> None:
    total = ZERO
    for at in range(len(head)):
        total += head[at] * head[at]
    factor = ONE / np.sqrt(total / np.float32(len(head)) + epsilon)
    for at in range(len(head)):
        head[at] *= factor * weight[at]


@kernel(**OPTIONS)
def _rotate(head: Array, cos: Array, sin: Array, factor: Any, out: Array) -> None:
    """Rotary embedding of one head (Su et al. 2021, eq. 34, halves instead of pairs), scaled."""
    half = len(head) // 2
    for at in range(half):
        low, high = head[at], head[half + at]
        out[at] = (low * cos[at] - high * sin[at]) * factor
        out[half + at] = (high * cos[half + at] + low * sin[half + at]) * factor


@kernel(**OPTIONS)
def _score(query: Array, keys: Array, block_starts: Array, span: Any, scores: Array) -> None:
    """Write query x keys for the rows of `span` in their blocks; four rows at once."""
    width = len(query)
    row, end = span
    while row < end:
        stop = min(end, (row // BLOCK + 1) * BLOCK)
        at = block_starts[row // BLOCK] + row % BLOCK
        while row + 4 <= stop:
            a = b = c = d = ZERO
            for part in range(width):
                value = query[part]
                a += value * keys[at, part]
                b += value * keys[at + 1, part]
                c += value * keys[at + 2, part]
                d += value * keys[at + 3, part]
            scores[row], scores[row + 1], scores[row + 2], scores[row + 3] = a, b, c, d
            row += 4
            at += 4
        while row < stop:
            a = ZERO
            for part in range(width):
                a += query[part] * keys[at, part]
            scores[row] = a
            row += 1
            at += 1


@kernel(**OPTIONS)
def _soft_cap(scores: Array, cap: Any, span: Any) -> None:
    """Soft-cap scores in place (Bello et al. 2016, section 5.1): cap x tanh(score / cap)."""
    first, end = span
    for at in range(first, end):
        scores[at] = cap * np.tanh(scores[at] / cap)


@kernel(**OPTIONS)
def _softmax(scores: Array, span: Any, sink: Any) -> Any:
    """Exponentials of one head's scores in place, and 1 / their sum; `sink` joins the sum only."""
    first, end = span
    top = max(scores[first], sink)
    for at in range(first, end):
        top = max(top, scores[at])
    total = np.exp(sink - top)
    for at in range(first, end):
        scores[at] = _exp_of_negative(scores[at] - top)
        total += scores[at]
    return ONE / total


@kernel(**OPTIONS)
def _weighted_sum(scores: Array, values: Array, block_starts: Array, span: Any, out: Array) -> None:
    """Write weights x values of the rows of `span`; four rows at once."""
    width = len(out)
    for part in range(width):
        out[part] = ZERO
    row, end = span
    while row < end:
        stop = min(end, (row // BLOCK + 1) * BLOCK)
        at = block_starts[row // BLOCK] + row % BLOCK
        while row + 4 <= stop:
            a, b, c, d = scores[row], scores[row + 1], scores[row + 2], scores[row + 3]
            for part in range(width):
                low = a * values[at, part] + b * values[at + 1, part]
                out[part] += low + c * values[at + 2, part] + d * values[at + 3, part]
            row += 4
            at += 4
        while row < stop:
            for part in range(width):
                out[part] += scores[row] * values[at, part]
            row += 1
            at += 1


@kernel(**OPTIONS)
def _attend_head(
    query: Array,  # [head dim], scaled
    past: Any,  # keys and values of its kv head: [tokens, head dim]
    seen: Any,  # first row of each block, and how many rows the query sees
    numbers: Any,  # window (0: none), cap (0: none), sink (-inf: none)
    scores: Array,  # at least those rows, overwritten
    out: Array,  # [value head dim]
) -> None:
    block_starts, end = seen
    window, cap, sink = numbers
    first = np.int64(0)
    if window > 0:
        first = max(first, end - window)
    span = (first, end)
    _score(query, past[0], block_starts, span, scores)
    if cap > 0:
        _soft_cap(scores, cap, span)
    factor = _softmax(scores, span, sink)
    _weighted_sum(scores, past[1], block_starts, span, out)
    for part in range(len(out)):
        out[part] *= factor


@kernel(**OPTIONS)
def attend_fused(
    heads: Array,  # [rows, query heads + 2 x kv heads, head dim]: queries, keys, values
    index: Any,  # row index and block starts as in SmallBatch, cos and sin: [rows, head dim]
    arenas: Any,  # keys and values of one layer: [kv heads, tokens, head dim]
    norms: Any,  # weights of query and key norm, [head dim] or empty, and their epsilon
    shape: Any,  # kv heads, window (0: none), factor of the scores
    out: Array,  # [rows, query heads, head dim]
) -> None:
    """Norm and rotate, write the rows' keys and values, attend row by row up to its own position.

    Rows of one session must come in order: the later see the earlier.
    """
    row_index, block_starts, cos, sin = index
    query_norm, key_norm, epsilon = norms
    kv_heads, window, factor = shape
    rows, query_heads, width = out.shape
    group = query_heads // kv_heads
    turned = np.empty(width, np.float32)
    scores = np.empty(row_index[:, 1].max() + 1, np.float32)
    for row in range(rows):
        first_block, position = row_index[row]
        own = block_starts[first_block:]
        at = own[position // BLOCK] + position % BLOCK
        for kv_head in range(kv_heads):
            keys, values = arenas[0][kv_head], arenas[1][kv_head]
            key = heads[row, query_heads + kv_head]
            if len(key_norm):
                _norm_head(key, key_norm, epsilon)
            _rotate(key, cos[row], sin[row], ONE, keys[at])
            values[at] = heads[row, query_heads + kv_heads + kv_head]
            for head in range(kv_head * group, (kv_head + 1) * group):
                query = heads[row, head]
                if len(query_norm):
                    _norm_head(query, query_norm, epsilon)
                _rotate(query, cos[row], sin[row], factor, turned)
                seen, numbers = (own, position + 1), (window, ZERO, NO_SINK)
                _attend_head(turned, (keys, values), seen, numbers, scores, out[row, head])


@kernel(**OPTIONS)
def attend(
    rows: Any,  # queries [heads, rows, head dim], keys and values [kv heads, rows, head dim]
    index: Any,  # row index and block starts as in SmallBatch
    arenas: Any,  # keys and values of one layer: [kv heads, tokens, head dim]
    numbers: Any,  # window (0: none), factor of the scores, cap (0: none)
    sinks: Array,  # [heads] or empty
    out: Array,  # [rows, heads, value head dim]
) -> None:
    """Write keys and values that are rotated already, if at all, and attend as above."""
    queries, keys, values = rows
    row_index, block_starts = index
    window, factor, cap = numbers
    count, heads = out.shape[:2]
    kv_heads = len(keys)
    group = heads // kv_heads
    scores = np.empty(row_index[:, 1].max() + 1, np.float32)
    for row in range(count):
        first_block, position = row_index[row]
        own = block_starts[first_block:]
        at = own[position // BLOCK] + position % BLOCK
        for kv_head in range(kv_heads):
            past = arenas[0][kv_head], arenas[1][kv_head]
            past[0][at] = keys[kv_head, row]
            past[1][at] = values[kv_head, row]
            for head in range(kv_head * group, (kv_head + 1) * group):
                query = queries[head, row] * factor
                mine = (window, cap, sinks[head] if len(sinks) else NO_SINK)
                _attend_head(query, past, (own, position + 1), mine, scores, out[row, head])
