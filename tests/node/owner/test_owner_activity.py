"""How a machine tells that somebody is at work: typed input, and the desktop's idle hint."""

import asyncio
import os
from pathlib import Path

import pytest

from node.owner import owner_activity
from node.owner.owner_activity import read_idle_seconds, seconds_of_hint, seconds_since_input

NOW = 1_700_000_000.0


def test_the_terminal_that_was_typed_into_last_counts(tmp_path: Path) -> None:
    for name, ago in (("1", 500.0), ("2", 40.0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (NOW - ago, NOW))
    gone = tmp_path / "3"
    assert seconds_since_input(NOW, [tmp_path / "1", gone, tmp_path / "2"]) == 40.0
    assert seconds_since_input(NOW - 60.0, [tmp_path / "2"]) == 0.0  # the clock was set back
    assert seconds_since_input(NOW, [gone]) is None


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("IdleHint=no\nIdleSinceHint=1699999000000000\n", 0.0),
        ("IdleHint=yes\nIdleSinceHint=1699999940000000\n", 60.0),
        ("IdleHint=yes\nIdleSinceHint=0\n", None),  # nobody has logged in
        ("", None),
        ("Failed to connect to bus: Host is down\n", None),
        ("IdleHint=yes\nIdleSinceHint=soon\n", None),
    ],
)
def test_the_hint_of_logind_is_idle_since_or_not_idle_or_nothing(
    said: str, seconds: float | None
) -> None:
    assert seconds_of_hint(said, NOW) == seconds


@pytest.mark.parametrize("program", ["/no/such/loginctl", "cat"])
def test_a_machine_without_logind_or_with_one_that_hangs_is_read_all_the_same(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        owner_activity, "HINT", (program, "/dev/zero") if program == "cat" else (program,)
    )
    monkeypatch.setattr(owner_activity, "_terminals", lambda: [Path("/dev/null")])
    found = asyncio.run(read_idle_seconds())
    assert found is not None
    assert found >= 0
