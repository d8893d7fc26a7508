"""What a shard is told to hold, and what goes in and out of a step."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swarm.errors import EngineError
from swarm.wire.tensor_codec import DTYPES

QUANTS = ("", "int8")
Array = np.ndarray[Any, np.dtype[Any]]  # of the compiled kernels; may share memory with a tensor


@dataclass(frozen=True, slots=True)
class StageSpec:
    """Layers `[start, end)` and the share of `rank`: it holds units `[bounds[r], bounds[r+1])`."""

    folder: Path
    start: int
    end: int
    rank: int
    kv_bounds: tuple[int, ...]  # in KV heads
    mlp_bounds: tuple[int, ...]  # in blocks of 128 FFN columns
    dtype: str = "f32"
    quant: str = ""
    vocab_bounds: tuple[int, ...] = ()  # rows of embedding and head; (): each whole on its rank

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"a stage needs a layer, not [{self.start},{self.end})")
        for bounds in (self.kv_bounds, self.mlp_bounds):
            if len(bounds) < 2 or bounds[0] != 0 or list(bounds) != sorted(bounds):
                raise ValueError(f"bounds {bounds} must rise from 0")
        if len(self.kv_bounds) != len(self.mlp_bounds) or not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank {self.rank} does not fit the bounds")
        vocab = self.vocab_bounds
        if vocab and (len(vocab) != len(self.kv_bounds) or any(a >= b for a, b in pairwise(vocab))):
            raise ValueError(f"vocabulary bounds {vocab} do not give every rank a part")
        if self.dtype not in DTYPES or self.quant not in QUANTS:
            raise ValueError(f"unknown dtype {self.dtype!r} or quant {self.quant!r}")

    @property
    def ranks(self) -> int:
        """How many devices share the stage."""
        return len(self.kv_bounds) - 1

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of weights, KV and hidden rows."""
        return DTYPES[self.dtype]


@dataclass(frozen=True, slots=True)
class StepItem:
    """New tokens of one session, the first at `position`."""

    session: str
    position: int
    rows: torch.Tensor  # ids [tokens] int64 on the first stage, else hidden [tokens, hidden]
    sample: bool = False  # the last stage draws the token after the last row
    drafts: tuple[int, ...] = ()  # guessed ids of the last rows: draw after each that is right


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of one item: rows to pass on, drawn ids, or the error of this item alone."""

    session: str
    rows: torch.Tensor | None = None  # hidden [tokens, hidden] unless this is the last stage
    ids: tuple[int, ...] = ()  # one, and one more for each guess that was right
    drafts: tuple[int, ...] = ()  # guesses of what follows them
    finish: str = ""  # "", "stop" or "length"
    logprobs: bytes = b""  # of `ids`, as they travel, if the session wants them
    error: EngineError | None = field(default=None)

    @property
    def token(self) -> int | None:
        """The first id that was drawn, if any."""
        return self.ids[0] if self.ids else None
