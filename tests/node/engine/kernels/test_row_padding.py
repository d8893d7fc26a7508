"""Rows are padded only where a measurement of this process says that it pays."""

import pytest
import torch

from node.engine.kernels import row_padding
from node.engine.kernels.row_padding import rows_to_pad, slower_than_padded


class Machine:
    """A clock that only products move, by the seconds of their number of rows."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self._seconds = seconds
        self.now = 0.0
        self.products = 0

    def perf_counter(self) -> float:
        return self.now

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        self.products += 1
        self.now += self._seconds[len(rows)]
        return rows


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_padding, "_known", {})
    monkeypatch.setattr(row_padding, "CACHE_BYTES", 1 << 12)


@pytest.mark.parametrize(
    ("seconds", "padded"),
    [
        ({1: 3.0, 2: 2.5, 3: 2.2, 4: 1.5}, {1, 2, 3}),  # AVX-512
        ({1: 1.0, 2: 2.5, 3: 2.2, 4: 1.5}, {2, 3}),  # AVX2
        ({1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}, set()),
        ({1: 1.02, 2: 1.05, 3: 1.0, 4: 1.0}, set()),  # noise
    ],
)
def test_rows_that_take_longer_than_four_are_padded(
    seconds: dict[int, float], padded: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert slower_than_padded(seconds) == padded
    machine = Machine(seconds)
    monkeypatch.setattr(row_padding, "time", machine)
    assert rows_to_pad(machine.multiply, 64, 64) == padded


def test_a_shape_is_measured_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(dict.fromkeys(range(1, 5), 1.0))
    monkeypatch.setattr(row_padding, "time", machine)
    rows_to_pad(machine.multiply, 1000, 600)
    first = machine.products
    rows_to_pad(machine.multiply, 1010, 520)  # alike
    assert machine.products == first > 0
    rows_to_pad(machine.multiply, 2000, 600)
    assert machine.products == 2 * first


def test_a_moment_in_which_others_compute_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0})
    monkeypatch.setattr(row_padding, "time", machine)

    def multiply(rows: torch.Tensor) -> torch.Tensor:
        if machine.products < 2:
            machine.now += 100.0
        return machine.multiply(rows)

    assert rows_to_pad(multiply, 64, 64) == set()
