"""Report: figures with their gates, as a table for people and as JSON."""

import json
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Gate:
    """What a figure should be: at most, or at least, a limit."""

    limit: float
    at_most: bool = True

    def holds(self, value: float) -> bool:
        """Whether a value passes."""
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    part: str
    name: str
    value: float
    unit: str
    gate: Gate | None = None


class Report:
    """The figures of one run; each is shown as it comes."""

    def __init__(self, title: str, **machine: str) -> None:
        self.figures: list[Figure] = []
        self._title = title
        self._machine = machine  # what is worth knowing of it besides its CPU
        self._console = Console(highlight=False, soft_wrap=True)

    def add(self, part: str, name: str, value: float, unit: str, gate: Gate | None = None) -> None:
        """Note a figure."""
        self.figures.append(Figure(part, name, value, unit, gate))
        self._console.print(f"  {part}: {name} = {value:.4g} {unit}", style="dim")

    def show(self) -> None:
        """Print the table."""
        table = Table("part", "figure", "value", "unit", "gate", title=self._title)
        for each in self.figures:
            verdict = "" if each.gate is None else f"{each.gate} {self._word(each)}"
            table.add_row(each.part, each.name, f"{each.value:.4g}", each.unit, verdict)
        self._console.print(table)

    def write(self, file: Path | None) -> None:
        """Write JSON, if a file is given."""
        if file is None:
            return
        machine = {"cpu": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
        machine |= self._machine
        rows = [asdict(each) for each in self.figures]
        document = {"title": self._title, "machine": machine, "figures": rows}
        file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def _word(self, figure: Figure) -> str:
        assert figure.gate is not None
        return "ok" if figure.gate.holds(figure.value) else "MISSED"


def seconds_of(run: Callable[[], object]) -> float:
    """How long one call takes."""
    start = perf_counter()
    run()
    return perf_counter() - start


def cpu_seconds_of(run: Callable[[], object]) -> float:
    """How long one call computes, whatever else the machine does."""
    start = thread_time()
    run()
    return thread_time() - start


def median_seconds(run: Callable[[], object], rounds: int) -> float:
    """The median of some calls, after one to warm up."""
    run()
    return median(seconds_of(run) for _ in range(rounds))


def ratio_of(ones: Iterable[float], others: Iterable[float]) -> float:
    """The median of pairs measured side by side, so that the machine's moods cancel out."""
    return median(one / other for one, other in zip(ones, others, strict=True))
