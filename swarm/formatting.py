"""Formatting: how sizes and the words of strangers are shown to a person."""

import logging
import re
import sys
import unicodedata
from typing import TextIO

MOST_SHOWN = 200  # characters of a stranger's words in a line of ours
CUT = "..."
SHORT_ID = 8  # characters of a peer id that people read
JOINERS = "\u200c\u200d"  # emoji and some scripts need them; they do no harm
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # categories that show nothing and may act
# What a terminal obeys, or what turns the line around: C0 without tab and newline, DEL, C1,
# the bidirectional embeddings, overrides and isolates, and halves of a surrogate pair.
_OBEYED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, cap: int = MOST_SHOWN) -> str:
    r"""Return `text` on one line: what a terminal would obey as escapes such as \x1b, cut at `cap`.

    Brackets stay as they are: give the result to rich as `Text` or with `markup=False`.
    """
    if text.isascii() and text.isprintable():
        shown = text[: cap + 1]
    else:
        shown = "".join(map(_escaped, text[: cap + 1]))
    return shown if len(shown) <= cap else shown[: max(cap - len(CUT), 0)] + CUT


def short_id(peer: str) -> str:
    """A peer id as people see it: its last 8 characters, since all ids of a kind begin alike."""
    return printable(peer[-SHORT_ID:])


def bytes_text(size: float) -> str:
    """Bytes for people, in three digits: 42.7 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def without_controls(text: str) -> str:
    """Return a model's text for a terminal: tabs and newlines stay, what it would obey goes."""
    return _OBEYED.sub("", text)


def escape_controls(text: str) -> str:
    r"""Return JSON or a traceback with what a terminal would obey written as \u escapes."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class PrintableFormatter(logging.Formatter):
    """Log lines with strangers' words in them: one line each, a traceback below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Escape the message; the pattern around it is ours."""
        record.message = printable(record.message, cap=10 * MOST_SHOWN)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        """Escape a traceback, whose last line may quote a stranger."""
        return escape_controls(super().formatException(ei))  # type: ignore[arg-type]


def log_printably(level: int = logging.WARNING) -> None:
    """Send this process's log lines to standard error, escaped."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def accept_any_text(*streams: TextIO) -> None:
    """Let streams whose encoding lacks a character write its escape instead of failing."""
    for stream in streams or (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _escaped(char: str) -> str:
    if unicodedata.category(char) not in HIDDEN or char in JOINERS:
        return char
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
