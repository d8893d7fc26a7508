"""Decode steps recorded once and replayed: on a GPU the host is slower than the arithmetic.

A step is recorded when the same sessions have decoded together a few times. Everything that
changes between steps stands in buffers: rows, positions, and masks that follow from positions.
What cannot be recorded (a model that asks the device for values) runs as before.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from node.engine.backend import Backend
from node.engine.batch import Batch, Chunk, Singles
from node.engine.cache import KVStore
from node.engine.skeleton import Skeleton

logger = logging.getLogger(__name__)

REPEATS = 4  # steps of the same sessions before theirs is recorded
LENGTH_STEP = 256  # rows; a recorded step reads so many more than it must, at most
GRAPHS_KEPT = 8
WARM_RUNS = 2

Outputs = tuple[torch.Tensor, ...]
Replay = Callable[[], None]
Record = Callable[[Callable[[], Outputs]], tuple[Replay, Outputs]]


def record_cuda(run: Callable[[], Outputs]) -> tuple[Replay, Outputs]:
    """Record `run` as a CUDA graph; raises RuntimeError if that is impossible."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    current = torch.cuda.current_stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARM_RUNS):
            run()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph.replay, outputs


class FixedBatch(Batch):
    """A decode step whose shapes do not change while its sessions grow up to `limits`."""

    def __init__(
        self, store: KVStore, chunks: Sequence[Chunk], like: torch.Tensor, backend: Backend
    ) -> None:
        super().__init__(store, chunks, like, backend)
        self._parts = [
            self._singles_of([part]) if isinstance(part, Chunk) else part for part in self._parts
        ]
        self.limits = {size_and_index(chunk): 0 for chunk in chunks}
        for part in self._parts:
            assert isinstance(part, Singles)
            length = -(-(part.most + 1) // LENGTH_STEP) * LENGTH_STEP
            part.most = min(length, part.size) - 1
            for block in part.blocks.tolist():
                self.limits[(part.size, block)] = part.most + 1

    def place(self, positions: torch.Tensor) -> None:
        """Take the positions of this step, [tokens]; part of what is recorded."""
        for part in self._parts:
            assert isinstance(part, Singles)
            part.positions = positions[part.here]
            part.masks.clear()

    def _singles_mask(self, singles: Singles, window: int | None) -> tuple[int, torch.Tensor]:
        if window not in singles.masks:
            rows = singles.positions.new_zeros(singles.high - singles.low)
            rows[singles.blocks - singles.low] = singles.positions
            columns = torch.arange(singles.most + 1, device=self._like.device)
            mask = self._mask(rows, columns, window)[:, None, None]  # [blocks, 1, 1, length]
            singles.masks[window] = (0, mask)
        return singles.masks[window]


@dataclass(slots=True)
class Recorded:
    """One recorded step: its buffers, how to replay it, and what comes out."""

    batch: FixedBatch
    rows: torch.Tensor  # ids [1, tokens] or hidden [1, tokens, hidden]
    positions: torch.Tensor  # [1, tokens]
    replay: Replay
    outputs: Outputs  # hidden [1, tokens, hidden]; with a head logits [1, tokens, vocab] too

    def fits(self, chunks: Sequence[Chunk]) -> bool:
        """Whether no session has outgrown the recorded lengths."""
        return all(chunk.end <= self.batch.limits[size_and_index(chunk)] for chunk in chunks)


class DecodeGraphs:
    """The recorded steps of one stage; owned by its compute thread."""

    def __init__(
        self,
        skeleton: Skeleton,
        store: KVStore,
        like: torch.Tensor,
        record: Record = record_cuda,
    ) -> None:
        self._skeleton, self._store, self._like, self._record = skeleton, store, like, record
        self._recorded: dict[tuple[tuple[int, int], ...], Recorded] = {}
        self._latest: tuple[tuple[int, int], ...] = ()
        self._repeats = 0
        self.is_broken = False
        self.replays = 0

    def run(self, rows: torch.Tensor, chunks: Sequence[Chunk], backend: Backend) -> Outputs | None:
        """Replay the step of these sessions, or return None if it has to be computed as usual."""
        if self.is_broken or any(chunk.count != 1 for chunk in chunks):
            return None
        key = tuple(size_and_index(chunk) for chunk in chunks)
        self._repeats = self._repeats + 1 if key == self._latest else 1
        self._latest = key
        found = self._recorded.pop(key, None)
        if found is None or not found.fits(chunks):
            if self._repeats < REPEATS:
                return None
            found = self._recorded_anew(rows, chunks, backend)
            if found is None:
                return None
        self._recorded[key] = found  # the latest used last
        if len(self._recorded) > GRAPHS_KEPT:
            del self._recorded[next(iter(self._recorded))]
        found.rows.copy_(rows.unsqueeze(0))
        found.positions.copy_(torch.tensor([[chunk.position for chunk in chunks]]))
        found.replay()
        self.replays += 1
        return tuple(each[0].clone() for each in found.outputs)

    def _recorded_anew(
        self, rows: torch.Tensor, chunks: Sequence[Chunk], backend: Backend
    ) -> Recorded | None:
        device = self._like.device
        batch = FixedBatch(self._store, chunks, self._like, backend)
        dtype = rows.dtype if rows.ndim == 1 else self._like.dtype
        buffer = rows.to(device, dtype, copy=True).unsqueeze(0)
        places = [[chunk.position for chunk in chunks]]
        positions = torch.tensor(places, device=device)
        try:
            replay, outputs = self._record(lambda: self._forward(batch, buffer, positions))
        except RuntimeError as error:
            logger.warning("decode steps cannot be recorded here: %s", error)
            self.is_broken = True
            return None
        return Recorded(batch, buffer, positions, replay, outputs)

    def _forward(self, batch: FixedBatch, rows: torch.Tensor, positions: torch.Tensor) -> Outputs:
        skeleton = self._skeleton
        batch.place(positions[0])
        skeleton.step.attend = batch.attend
        named: dict[str, object] = {"position_ids": positions, "use_cache": False}
        named["past_key_values"] = None
        if rows.ndim == 2:
            named["input_ids"] = rows
        else:
            named["inputs_embeds"] = skeleton.entering = rows
        if not skeleton.has_head:
            skeleton.base(**named)
            assert skeleton.leaving is not None
            return (skeleton.leaving,)
        logits = skeleton.model(**named, logits_to_keep=0).logits
        assert skeleton.leaving is not None
        return skeleton.leaving, logits


def size_and_index(chunk: Chunk) -> tuple[int, int]:
    """Where a chunk's block lies: two sessions never share one."""
    return chunk.slot.size, chunk.slot.index
