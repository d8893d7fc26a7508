"""Screens: strangers' words and models' text on terminals and in pipes."""

import io
import json
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.cli.swarm_status import SwarmStatus
from client.cli.tables import show_peers, show_plan, show_plan_table, show_planner, show_stages
from client.cli.terminal import Terminal, wrapped
from client.routing.live_plan import LivePlan
from planner.cli.text_chart import layers_picture
from swarm.hardware import Device
from swarm.plan import Pipeline, Plan, Shard, Stage
from swarm.records import Capability, Member, StageAdvert
from swarm.testing.memory_network import peer_named

EVE = peer_named("eve")
HOSTILE = ("[/]", "[link=file:///etc/passwd]oak[/link]", "\x1b]52;c;AAAA\x07", "\x9b2J", "\ud800")
DEVICE = Device(0, "cpu", "CPU", 2_000_000, 1e9, 2e9)
TEXT = ":100: a:smile:b\tif x:\r\n[bold]red[/bold] \x1b[31m 👍\n"


class FakeTerminal(io.StringIO):
    """Where a person watches."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def open_terminal(patch: pytest.MonkeyPatch, *, columns: int = 160) -> FakeTerminal:
    """From now on standard output is a terminal."""
    patch.setenv("TERM", "xterm-256color")
    patch.setenv("COLUMNS", str(columns))
    made = FakeTerminal()
    patch.setattr(sys, "stdout", made)
    return made


def status_of(name: str) -> SwarmStatus:
    device = replace(DEVICE, name=name)
    known = Capability("m", [device], [], "host", True, 0.0, name=name)
    stage = StageAdvert(0, 6, [Member(EVE, 0, 1, 1)], 0.002, 512, 1)
    return SwarmStatus("forest-abc", name, {EVE: known}, (stage,), EVE, 3)


def show_all(name: str) -> None:
    status = status_of(name)
    shard = Shard(f"{EVE}/0", 1, 1)
    strange = Shard(name + "/1", 1, 1)
    plan = Plan((Pipeline((Stage(0, 3, (shard,)), Stage(3, 6, (strange,)))),))
    terminal = Terminal()
    terminal.head(f"{status.swarm} serves {status.model}")
    for show in (show_planner, show_peers, show_stages):
        show(terminal, status)
    show_plan(terminal, LivePlan(plan, 3, name, "", {}), status, layers_picture)
    show_plan(terminal, LivePlan(Plan(()), 3, EVE, name, {}), status, layers_picture)
    show_plan_table(terminal, LivePlan(plan, 3, EVE, "", {}), status)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_of_a_stranger_acts_on_a_terminal(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = open_terminal(monkeypatch)
    show_all(name)
    shown = terminal.getvalue()
    assert "\x1b]" not in shown, "neither links nor the clipboard"
    assert "\x9b" not in shown
    shown.encode()
    if name.isprintable():
        assert name in shown, "brackets are shown as they are"


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_of_a_stranger_acts_through_a_pipe(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_all(name)
    assert all(char.isprintable() or char == "\n" for char in capsys.readouterr().out)


@settings(max_examples=40)
@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=20))
def test_any_name_can_be_shown(name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        made = open_terminal(patch)
        show_all(name)
    made.getvalue().encode()


def test_text_reaches_a_pipe_byte_for_byte(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().piece(TEXT)
    assert capsys.readouterr().out == TEXT


def test_a_pipe_stays_one_where_colours_are_forced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    Terminal().piece(TEXT)
    assert capsys.readouterr().out == TEXT


def test_a_terminal_gets_tabs_and_newlines_but_no_escape_sequence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = open_terminal(monkeypatch)
    Terminal().piece(TEXT)
    assert terminal.getvalue() == TEXT.replace("\x1b", "").replace("\r", "")


def test_json_is_the_same_values_everywhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"text": TEXT + "\x9b2J"}
    Terminal().json(values)
    assert json.loads(capsys.readouterr().out) == values
    made = open_terminal(monkeypatch)
    Terminal().json(values)
    assert json.loads(made.getvalue()) == values
    assert "\x9b" not in made.getvalue()
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    Terminal().json(values)
    ascii_only.seek(0)
    assert json.loads(ascii_only.read()) == values


def test_a_narrow_terminal_lists_what_a_table_would_tear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = open_terminal(monkeypatch, columns=60)
    show_peers(Terminal(), status_of("oak"))
    lines = terminal.getvalue().splitlines()
    assert "   name: oak" in lines
    assert " serves: 0-5" in lines
    assert all(len(line) <= 60 for line in lines)


def test_a_dumb_terminal_gets_no_colours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    show_all("oak")
    assert "\x1b" not in terminal.getvalue()


def test_an_unnamed_peer_shows_its_id_once(capsys: pytest.CaptureFixture[str]) -> None:
    show_peers(Terminal(), status_of(""))
    _, row = capsys.readouterr().out.splitlines()
    assert row.startswith("-")
    assert row.count(EVE[-8:]) == 1


def test_long_lines_break_between_words() -> None:
    assert wrapped("one two three", 0, 4) == "one two three"
    assert wrapped("one two three", 9, 4) == "one two\n    three"
