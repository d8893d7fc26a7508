"""Which numbers of rows are worth padding to four: measured once for each shape in a process.

Where AVX-512 is, oneDNN multiplies one row by a weight from memory more slowly than four; with AVX2
alone one row is faster as it is.
"""

import math
import time
from collections.abc import Callable

import torch

FEWEST_ROWS = 4  # to which fewer are padded, where that is faster
CACHE_BYTES = 48 << 20  # walked over before each product, so that its weight comes from memory
ROUNDS = 3
CLEARLY = 0.9  # of the time without padding: what noise alone does not save

Multiply = Callable[[torch.Tensor], torch.Tensor]
Shape = tuple[int, int, int]  # inputs and outputs in bits, torch's threads

_known: dict[Shape, frozenset[int]] = {}


def rows_to_pad(multiply: Multiply, inputs: int, outputs: int) -> frozenset[int]:
    """Numbers of rows for which `multiply` is slower than for FEWEST_ROWS; takes 0.1 s once."""
    shape = inputs.bit_length(), outputs.bit_length(), torch.get_num_threads()
    if shape not in _known:
        _known[shape] = slower_than_padded(_measured(multiply, inputs))
    return _known[shape]


def slower_than_padded(seconds: dict[int, float]) -> frozenset[int]:
    """The numbers of rows that clearly take longer than FEWEST_ROWS."""
    padded = seconds[FEWEST_ROWS]
    return frozenset(rows for rows, each in seconds.items() if padded < CLEARLY * each)


@torch.inference_mode()
def _measured(multiply: Multiply, inputs: int) -> dict[int, float]:
    """Seconds by number of rows: the best of some rounds, so that others' work does not count."""
    walked = torch.zeros(CACHE_BYTES // 4)
    best = dict.fromkeys(range(1, FEWEST_ROWS + 1), math.inf)
    for _ in range(ROUNDS):
        for rows in best:
            some = torch.ones(rows, inputs)
            walked.add_(1)
            started = time.perf_counter()
            multiply(some)
            best[rows] = min(best[rows], time.perf_counter() - started)
    return best
