"""Flow boxes: ranges of flow, sequences and batches of one pipeline; bounds hold in each."""

from dataclasses import dataclass, fields, replace

import numpy as np

from planner.cost.cost_model import BATCH_CAP, GROUPS_PER_STAGE
from planner.problem import Numbers

NDBool = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False, slots=True)
class FlowBoxes:
    """Arrays [box] of both ends, which belong to the range.

    `flow` in tokens/s; `held`: whole sequences; `waves`: batches in flight, held / batch.
    """

    low_flow: Numbers
    high_flow: Numbers
    low_held: Numbers
    high_held: Numbers
    low_waves: Numbers
    high_waves: Numbers

    def __len__(self) -> int:
        return len(self.low_flow)

    @property
    def least_batch(self) -> Numbers:
        """Sequences in one pass, at least."""
        return np.maximum(self.low_held / self.high_waves, 1.0)

    @property
    def most_batch(self) -> Numbers:
        """Sequences in one pass, at most."""
        return np.maximum(self.high_held / self.low_waves, 1.0)

    def select(self, which: NDBool | slice) -> "FlowBoxes":
        """Some of the boxes."""
        return FlowBoxes(*(getattr(self, field.name)[which] for field in fields(self)))

    def are_fine(self, ratio: float) -> NDBool:
        """Whether neither sequences nor waves range over more than that ratio."""
        held, waves = self._ratios()
        fine: NDBool = np.maximum(held, waves) <= ratio
        return fine

    def _ratios(self) -> tuple[Numbers, Numbers]:
        held = np.where(self.high_held > self.low_held, (self.high_held + 1) / self.low_held, 1.0)
        more = self.high_waves > self.low_waves
        waves = np.where(more, (self.high_waves + 1) / self.low_waves, 1.0)
        return held, waves

    def halves(self) -> "FlowBoxes":
        """Every box in two along its wider range."""
        held, waves = self._ratios()
        wide = waves > held
        middle_held = np.floor(np.sqrt(self.low_held * self.high_held))
        middle_waves = np.floor(np.sqrt(self.low_waves * self.high_waves))
        lower = replace(
            self,
            high_held=np.where(wide, self.high_held, middle_held),
            high_waves=np.where(wide, middle_waves, self.high_waves),
        )
        upper = replace(
            self,
            low_held=np.where(wide, self.low_held, middle_held + 1),
            low_waves=np.where(wide, middle_waves + 1, self.low_waves),
        )
        return concatenate(lower, upper).non_empty()

    def non_empty(self) -> "FlowBoxes":
        """Those that hold a whole number of sequences in at most as many waves."""
        possible = self.low_waves <= self.high_held
        possible &= (self.low_held <= self.high_held) & (self.low_waves <= self.high_waves)
        return self.select(possible)


def concatenate(a: FlowBoxes, b: FlowBoxes) -> FlowBoxes:
    """Both."""
    pairs = ((getattr(a, f.name), getattr(b, f.name)) for f in fields(FlowBoxes))
    return FlowBoxes(*(np.concatenate(pair) for pair in pairs))


def first_boxes(flow: tuple[float, float], stages: int) -> FlowBoxes:
    """Boxes that cover every pipeline of so many stages whose flow is in the range."""
    held, waves = _doubling(BATCH_CAP), _doubling(GROUPS_PER_STAGE * stages)
    rows = [(*flow, *h, *w) for h in held for w in waves]
    return FlowBoxes(*np.array(rows, dtype=float).T).non_empty()


def _doubling(most: int) -> list[tuple[int, int]]:
    """Ranges 1, 2-3, 4-7 ... up to `most`."""
    starts = [2**i for i in range(most.bit_length())]
    return [(start, min(2 * start - 1, most)) for start in starts]
