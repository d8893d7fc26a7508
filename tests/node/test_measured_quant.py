"""A worker that is asked for int8 compares it with what it takes the place of."""

from pathlib import Path
from typing import Any

import pytest

from node.answers import measured
from node.orders import Measure
from swarm.checkpoint import find_model, read_spec
from swarm.model import BUILT_IN

FOLDER = find_model(BUILT_IN)
SPEC = read_spec(FOLDER, BUILT_IN).to_json()


@pytest.fixture
def _speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that reads 2 GB/s of float32 and 0.25 GB/s of int8."""

    def measure(*_: object, quant: str = "", **__: object) -> tuple[float, float]:
        return (0.25e9 if quant else 2e9), 1e9

    monkeypatch.setattr("node.answers.measure", measure)


@pytest.mark.usefixtures("_speeds")
@pytest.mark.parametrize(("quant", "cost"), [("int8", 2.0), ("", 1.0)])
def test_int8_is_compared_with_full_weights(quant: str, cost: float) -> None:
    order: dict[str, Any] = {"quant": quant, "folder": str(Path(FOLDER))}
    answer = measured(Measure(SPEC, **order), "cpu", slowdown=3.0)
    assert answer.quant_cost == cost  # however slow the device plays to be
