"""Rules that pause a node by themselves: a command that succeeds, somebody who is at work."""

import asyncio
import logging
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from node.config import NodeConfig
from node.owner.pause_rules import CLEAR_LOOKS, CommandRule, IdleRule, rules_of
from swarm.task_set import TaskSet
from tests.node.stands import until


class Notes(list[bool]):
    """What a rule has said, in order."""

    def note(self, *, wants: bool) -> None:
        self.append(wants)


def test_the_pause_ends_only_after_the_command_has_failed_for_some_looks_in_a_row() -> None:
    notes, rule = Notes(), CommandRule("pgrep -x game")
    for code in (1, 0, 1, 1, 0, *(1,) * CLEAR_LOOKS, 1):
        rule.look_at(code, notes.note)
    assert notes == [True, True, False]


@pytest.mark.parametrize("code", [127, 126, -9, None])
def test_a_command_that_cannot_be_run_pauses_nothing_and_is_named_once(
    code: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    notes, rule = Notes(), CommandRule("pgerp -x game")
    with caplog.at_level(logging.WARNING):
        for _ in range(9):
            rule.look_at(code, notes.note)
    assert True not in notes
    assert caplog.text.count("pgerp -x game") == 1


def watch_until(rule: CommandRule | IdleRule, is_enough: Callable[[Notes], object]) -> Notes:
    """What a rule says, in a loop of its own, until that is enough."""

    async def story() -> Notes:
        notes = Notes()
        async with TaskSet() as tasks:
            tasks.create("rule", rule.watch(notes.note))
            await until(lambda: is_enough(notes), 20.0)
        return notes

    return asyncio.run(story())


def test_the_command_is_run_again_and_again_by_a_shell(tmp_path: Path) -> None:
    game = tmp_path / "game"
    game.touch()
    rule = CommandRule(f"test -e {shlex.quote(str(game))} && true", look_seconds=0.01)

    def is_enough(notes: Notes) -> bool:
        if notes:
            game.unlink(missing_ok=True)
        return False in notes

    notes = watch_until(rule, is_enough)
    assert (notes[0], notes[-1]) == (True, False)


def test_a_command_that_hangs_is_ended_with_its_children(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sign = tmp_path / "alive"
    command = f"(sleep 60; touch {shlex.quote(str(sign))}) | cat"
    rule = CommandRule(command, look_seconds=0.01, command_seconds=0.05)
    with caplog.at_level(logging.WARNING):
        watch_until(rule, lambda _: "does not end" in caplog.text)


def test_a_node_runs_only_when_nobody_has_been_there_for_so_long() -> None:
    notes, rule = Notes(), IdleRule(600.0)
    for seconds in (3.0, 599.0, 601.0, 0.0):
        rule.look_at(seconds, notes.note)
    assert notes == [True, True, False, True]


def test_where_nothing_tells_of_its_owner_a_node_runs_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def nothing() -> None:
        return None

    rule = IdleRule(600.0, look_seconds=0.001, read=nothing)
    with caplog.at_level(logging.WARNING):
        notes = watch_until(rule, lambda notes: len(notes) > 3)
    assert True not in notes
    assert caplog.text.count("nothing here tells") == 1


def test_the_command_line_says_which_rules_there_are() -> None:
    config = NodeConfig(founds=True)
    assert rules_of(config) == []
    both = rules_of(replace(config, pause_while="pgrep -x game", idle_seconds=600.0))
    assert [type(rule) for rule in both] == [CommandRule, IdleRule]
    assert "pgrep -x game" in both[0].name
