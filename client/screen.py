"""Screen: what a command shows; rich on a terminal, plain text and JSON otherwise."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


class Screen:
    """Standard output for results, standard error for remarks."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)

    @property
    def is_terminal(self) -> bool:
        """Whether a person watches."""
        return self._console.is_terminal

    def line(self, text: str = "") -> None:
        """Show one line, as it is."""
        self._console.print(text, markup=False)

    def head(self, text: str) -> None:
        """Show a heading."""
        self._console.print(text, style="bold cyan", markup=False)

    def piece(self, text: str) -> None:
        """Show a piece of text at once, without ending the line."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Say something that is not part of the result."""
        sys.stderr.write(f"{text}\n")

    def json(self, values: Any) -> None:
        """Show one JSON object and nothing else."""
        sys.stdout.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a table: drawn on a terminal, else columns parted by two blanks."""
        cells = [[str(cell) for cell in row] for row in rows]
        if not self.is_terminal:
            self._plain_table([list(headers), *cells])
            return
        table = Table(*headers)
        for row in cells:
            table.add_row(*row)
        self._console.print(table)

    def _plain_table(self, rows: list[list[str]]) -> None:
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        for row in rows:
            padded = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            self.line("  ".join(padded).rstrip())
