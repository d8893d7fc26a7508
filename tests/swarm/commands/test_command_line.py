"""What all commands share: suggestions, arguments as text, output that fails."""

import argparse
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from swarm.commands.command_line import (
    INTERRUPTED,
    Parser,
    carry_out,
    read_arguments,
    say_error,
    seconds_of,
)
from swarm.errors import BadInput, SwarmError

HELP = [sys.executable, "-c", "from swarm.cli import run; run()", "--help"]


def parser() -> Parser:
    made = Parser(prog="swarm")
    commands = made.add_subparsers(dest="command", required=True, parser_class=Parser)
    generate = commands.add_parser("generate")
    generate.add_argument("prompt")
    generate.add_argument("--temperature", type=float)
    return made


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["generate", "hi", "--tempreature", "1"], "Did you mean --temperature?"),
        (["generate", "hi", "--tempreature=1"], "There is no option '--tempreature'."),
        (["generate", "hi", "--tempreature", "1"], "See `swarm generate --help`."),
        (["generate", "hi", "there"], "There is no option 'there'."),
        (["generate"], "See `swarm generate --help`."),
        (["generate", "hi", "--zzz"], "There is no option '--zzz'. See"),
    ],
)
def test_a_wrong_option_is_refused_under_its_command(words: list[str], says: str) -> None:
    with pytest.raises(BadInput) as refused:
        parser().parse_args(words)
    assert says in str(refused.value)


def test_a_mistyped_option_is_named_before_what_is_missing_besides() -> None:
    made = Parser(prog="swarm node")
    made.add_mutually_exclusive_group(required=True).add_argument("--host", action="store_true")
    made.add_argument("--port")
    for words, says in (
        (["--hots"], "There is no option '--hots'. Did you mean --host?"),
        (["--por", "1"], "One of the arguments --host is required."),
        (["--port", "1"], "One of the arguments --host is required."),
    ):
        with pytest.raises(BadInput) as refused:
            made.parse_args(words)
        assert str(refused.value) == f"{says} See `swarm node --help`."


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_to_wait_is_a_positive_number(text: str) -> None:
    assert seconds_of("2.5") == 2.5
    with pytest.raises(argparse.ArgumentTypeError):
        seconds_of(text)


def test_arguments_that_a_locale_could_not_read_are_utf_8_all_the_same() -> None:
    as_read = "ünï 👍".encode().decode("ascii", "surrogateescape")
    assert read_arguments(["plain", as_read]) == ["plain", "ünï 👍"]


@pytest.mark.parametrize("word", ["\udcff", "caf\udce9", "half \ud83d"])
def test_arguments_that_are_no_text_are_refused(word: str) -> None:
    with pytest.raises(BadInput, match="not valid UTF-8"):
        read_arguments([word])


def test_an_error_is_one_line_whatever_a_stranger_says(capsys: pytest.CaptureFixture[str]) -> None:
    say_error(SwarmError("Peer x refused: \x1b[2J\nerror: \ud800."))
    assert capsys.readouterr().err == "error: Peer x refused: \\x1b[2J\\nerror: \\ud800.\n"


def test_an_error_of_the_system_about_a_file_is_not_taken_for_the_output() -> None:
    def fail() -> int:
        raise OSError(28, "No space left on device", "some/file")

    with pytest.raises(OSError, match="some/file"):
        carry_out(fail)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_a_redirect_is_one_sentence(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(HELP, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        "error: The output cannot be written: No space left on device. Free the disk.\n"
    )


def test_a_reader_who_has_gone_ends_the_command_quietly() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(HELP, stdout=writes, stderr=subprocess.PIPE, timeout=60)
    os.close(writes)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_closed_output_is_refused_before_anything_is_done() -> None:
    shell = ["sh", "-c", '"$@" >&-', "sh", *HELP]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Standard output is closed.")


class Interrupted:
    """Ctrl-C reaches the process while this is destroyed."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_interruption_in_a_destructor_ends_the_command_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hook = sys.unraisablehook

    def command() -> int:
        Interrupted()
        threading.Event().wait(30)
        return 0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of `&` ignores it
    try:
        assert carry_out(command) == INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == ""
    assert sys.unraisablehook is hook
