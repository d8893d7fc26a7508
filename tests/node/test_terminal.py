"""A node's lines: what a stranger wrote is read, never obeyed; nobody has to read at all."""

import io
import sys
from typing import NoReturn

import pytest

from node.main import Terminal
from node.status_lines import StatusLines
from tests.node.memberships import SPEC

HOSTILE = "\x1b]52;c;cm0gLXJmIH4K\x07\x1b[2J[link=x]:smile:\ud800"


class FakeTerminal(io.StringIO):
    """Where a person watches."""

    def isatty(self) -> bool:
        return True


class FullDisk(io.StringIO):
    """Where nothing can be written."""

    def write(self, text: str) -> NoReturn:
        raise OSError(28, "No space left on device")


def wait_for(reason: str) -> None:
    StatusLines(Terminal().say, lambda _: None, SPEC).waiting(reason)


def test_a_planners_reason_is_shown_escaped_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = FakeTerminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    wait_for(HOSTILE)
    shown = terminal.getvalue()
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown
    assert r"\x1b]52;c;cm0gLXJmIH4K\x07\x1b[2J[link=x]:smile:\ud800" in shown


def test_a_planners_reason_is_one_line_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    wait_for("no room\nready: everything" + HOSTILE)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("waiting: no room\\nready")
    assert line.isprintable()


def test_a_node_lives_on_where_its_lines_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", FullDisk())
    wait_for("no room")
