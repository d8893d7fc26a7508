"""Terminal: what a command shows; rich on a terminal, exact bytes and JSON otherwise."""

import json
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from swarm.formatting import escape_controls, printable, without_controls

GAP = "  "  # between the columns of a plain table
FRAME = 3  # characters that a drawn table needs for each column
LONGEST_LINE = 10_000  # characters


class Terminal:
    """Standard output for results, standard error for remarks; nothing acts on the terminal."""

    def __init__(self) -> None:
        # FORCE_COLOR must not change what goes into a pipe
        is_terminal = sys.stdout.isatty()
        self._console = Console(force_terminal=is_terminal, highlight=False, soft_wrap=True)

    @property
    def is_terminal(self) -> bool:
        """Whether a person watches."""
        return self._console.is_terminal

    @property
    def width(self) -> int:
        """How many characters fit into a line; 0 in a pipe, where lines may be of any length."""
        return self._console.width if self.is_terminal else 0

    @property
    def height(self) -> int:
        """How many lines are seen at once; 0 in a pipe."""
        return self._console.height if self.is_terminal else 0

    def line(self, text: str = "") -> None:
        """Show one line, or several parted by newlines; strangers' words in it are escaped."""
        sys.stdout.write(_readable(text) + "\n")

    def picture(self, text: str) -> None:
        """Show what we have drawn ourselves, colours and all."""
        sys.stdout.write(text + "\n")

    def head(self, text: str) -> None:
        """Show a heading."""
        self._console.print(Text(printable(text), style="bold cyan"))

    def piece(self, text: str) -> None:
        """Show a piece of a model's text at once: exact, but for what a terminal would obey."""
        sys.stdout.write(without_controls(text) if self.is_terminal else text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Say something that is not part of the result."""
        sys.stderr.write(_readable(text) + "\n")

    def json(self, values: Any) -> None:
        """Show one JSON object and nothing else."""
        is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        text = json.dumps(values, indent=2, ensure_ascii=not is_unicode)
        sys.stdout.write((escape_controls(text) if self.is_terminal else text) + "\n")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a table: drawn on a terminal that is wide enough, else in plain text."""
        cells = [[printable(str(cell)) for cell in row] for row in rows]
        widths = [max(map(cell_len, column)) for column in zip(headers, *cells, strict=True)]
        if not self.is_terminal:
            self._plain_table([list(headers), *cells], widths)
        elif sum(widths) + FRAME * len(widths) + 1 > self._console.width:
            self._listed(headers, cells)
        else:
            self._drawn_table(headers, cells)

    def _drawn_table(self, headers: Sequence[str], rows: list[list[str]]) -> None:
        table = Table(*headers)
        for row in rows:
            table.add_row(*map(Text, row))
        self._console.print(table)

    def _plain_table(self, rows: list[list[str]], widths: list[int]) -> None:
        for row in rows:
            fills = zip(row, widths, strict=True)
            padded = (cell + " " * (width - cell_len(cell)) for cell, width in fills)
            sys.stdout.write(GAP.join(padded).rstrip() + "\n")

    def _listed(self, headers: Sequence[str], rows: list[list[str]]) -> None:
        """Each row as a paragraph: a narrow terminal would tear columns into letters."""
        broad = max(map(len, headers))
        for row in rows:
            for header, cell in zip(headers, row, strict=True):
                sys.stdout.write(f"{header:>{broad}}: {cell}\n")
            sys.stdout.write("\n")


def _readable(text: str) -> str:
    return "\n".join(printable(part, LONGEST_LINE) for part in text.split("\n"))


def wrapped(text: str, width: int, indent: int) -> str:
    """Break a line between words where it is longer than `width`, if that is not 0."""
    if width <= 2 * indent:
        return text
    return textwrap.fill(text, width, subsequent_indent=" " * indent, break_long_words=False)
