"""Strangers' words: readable, on one line, and nothing that a terminal obeys."""

import io
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.formatting import (
    PrintableFormatter,
    accept_any_text,
    bytes_text,
    escape_controls,
    printable,
    without_controls,
)

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


@given(ANY_TEXT)
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    shown = printable(text)
    assert {unicodedata.category(char) for char in shown} & {"Cc", "Cs", "Zl", "Zp"} == set()
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e")
    assert len(shown) <= 200
    shown.encode()  # no half of a surrogate pair is left


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;AAAA\x07", r"\x1b]52;c;AAAA\x07"),
        ("two\nlines\tand\r", r"two\nlines\tand\r"),
        ("\x9b2J", r"\x9b2J"),
        ("\ud800", r"\ud800"),
        ("a\u202eb", r"a\u202eb"),
        ("\U000e0041", r"\U000e0041"),
        ("café 日本 👩‍👧 [/] ~", "café 日本 👩‍👧 [/] ~"),
    ],
)
def test_escapes_are_those_of_python_and_other_text_stays(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_long_words_are_cut_with_a_sign() -> None:
    assert printable("x" * 10, cap=10) == "x" * 10
    assert printable("x" * 11, cap=10) == "x" * 7 + "..."
    assert printable("\x1b" * 10**6, cap=10) == r"\x1b\x1..."


@given(ANY_TEXT)
def test_text_for_a_terminal_keeps_every_readable_character(text: str) -> None:
    kept = without_controls(text)
    assert all(char in "\t\n" or unicodedata.category(char) not in ("Cc", "Cs") for char in kept)
    harmless = [c for c in text if c in "\t\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs")]
    assert [c for c in kept if unicodedata.category(c) != "Cf"] == harmless


def test_json_shows_controls_as_its_own_escapes() -> None:
    assert escape_controls('{"name": "\x9b2J\u202e"}') == '{"name": "\\u009b2J\\u202e"}'


def test_a_log_line_cannot_hold_a_second_one_or_move_the_cursor() -> None:
    formatter = PrintableFormatter("%(name)s: %(message)s")
    try:
        raise ValueError("\x1b[2J")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("node", 30, "f", 1, "lost: %s", ("a\nb\x1b[A",), info)
    first, *rest = formatter.format(record).splitlines()
    assert first == r"node: lost: a\nb\x1b[A"
    assert rest[-1] == "ValueError: \\u001b[2J"


def test_a_stream_that_lacks_a_character_writes_its_escape() -> None:
    bytes_written = io.BytesIO()
    stream = io.TextIOWrapper(bytes_written, encoding="ascii")
    accept_any_text(stream)
    stream.write("né 👍 \ud800")
    stream.flush()
    assert bytes_written.getvalue() == rb"n\xe9 \U0001f44d \ud800"


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1 kB"),
        (1234, "1.23 kB"),
        (5e6, "5 MB"),
        (999_999_999, "1 GB"),
        (2.5e13, "25 TB"),
    ],
)
def test_amounts_are_short_words(size: float, words: str) -> None:
    assert bytes_text(size) == words
