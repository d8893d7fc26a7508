"""CommandLine: what all commands share: refusals in one sentence, and output that may fail."""

import argparse
import errno
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, NoReturn

from swarm.errors import BadInput, SwarmError
from swarm.formatting import accept_any_text, printable

INTERRUPTED = 130
AGAIN_SECONDS = 0.01  # after which a lost Ctrl-C is raised again
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LONGEST_DURATION = 5200.0 * 7 * 86400
LONGEST_ERROR = 4000  # characters of one refusal
# A full disk, a quota, a broken device or a closed descriptor: no file of ours, the output itself.
OUTPUT_FAILS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence with the next step."""

    _words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Raise BadInput; a mistyped option is the cause of much else, such as another's lack."""
        if self._subparsers is None and (name := self._mistyped()):
            raise self._unknown(name)
        raise BadInput(f"{message[:1].upper()}{message[1:]}.", f"See `{self.prog} --help`.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is unknown under the name of the command that was meant."""
        self._words = tuple(sys.argv[1:] if args is None else args)
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and self._subparsers is None:
            word = next((each for each in unknown if each.startswith("-")), unknown[0])
            raise self._unknown(word.partition("=")[0])
        return found, unknown

    def _mistyped(self) -> str:
        """The first long option that is none of ours, nor the beginning of one."""
        words = list(takewhile(lambda word: word != "--", self._words))
        names = [word.partition("=")[0] for word in words if word.startswith("--")]
        known = tuple(self._option_string_actions)
        return next((n for n in names if not any(each.startswith(n) for each in known)), "")

    def _unknown(self, name: str) -> BadInput:
        meant = suggestion(name, self._option_string_actions)
        return BadInput(f"There is no option {name!r}.{meant}", f"See `{self.prog} --help`.")


def seconds_of(text: str) -> float:
    """A positive, finite number of seconds, as the type of an option."""
    try:
        seconds = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from error
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no time to wait")
    return seconds


def duration_of(text: str) -> float:
    """Seconds of a time like 90s, 30m, 12h, 7d or 2w, as the type of an option."""
    number, unit = text.strip()[:-1], text.strip()[-1:].lower()
    if not number.isascii() or not number.isdigit() or unit not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no time; write it like 12h or 7d")
    seconds = float(number) * UNITS[unit]
    if not 0 < seconds <= LONGEST_DURATION:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not between 1s and 5200w")
    return seconds


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean X?" if a known word is like this one, else nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def carry_out(command: Callable[[], int], *, needs_output: bool = True) -> int:
    """Run a command; returns its exit code; says errors, and output that fails, in one sentence."""
    try:
        _open_streams(needs_output=needs_output)
        with _no_interrupt_lost():
            code = command()
        sys.stdout.flush()
    except SwarmError as error:
        say_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        _drop_output()
        return 0
    except OSError as error:
        if error.filename is not None or error.errno not in OUTPUT_FAILS:
            raise
        _drop_output()
        say_error(SwarmError(f"The output cannot be written: {error.strerror}.", "Free the disk."))
        return 1
    return code


def say_error(error: SwarmError) -> None:
    """Say an error on standard error, with strangers' words in it escaped."""
    sys.stderr.write(f"error: {printable(str(error), LONGEST_ERROR)}\n")


def read_arguments(arguments: Sequence[str]) -> list[str]:
    """The words of a command line as text; raises BadInput if one is neither that nor UTF-8."""
    return [as_text(word, "argument") for word in arguments]


def as_text(word: str, what: str) -> str:
    """A word as text, also where Python could not read it in a locale such as POSIX.

    Raises BadInput if it is not UTF-8 either.
    """
    try:
        word.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(word).decode()
        except UnicodeError as error:
            raise BadInput(
                f"The {what} '{printable(word, 60)}' is not valid UTF-8.", "Give UTF-8 text."
            ) from error
    return word


@contextmanager
def _no_interrupt_lost() -> Iterator[None]:
    """Raise a Ctrl-C again that came where no exception leaves, such as in a destructor.

    Python would print a traceback there and let the command go on.
    """
    before, done = sys.unraisablehook, threading.Event()
    main = threading.get_ident()

    def again() -> None:
        if not done.is_set():
            signal.pthread_kill(main, signal.SIGINT)  # a waiting thread wakes for a real one alone

    def hear(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            before(lost)
            return
        timer = threading.Timer(AGAIN_SECONDS, again)
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hear
    try:
        yield
    finally:
        sys.unraisablehook = before
        done.set()


def _open_streams(*, needs_output: bool) -> None:
    """Make both streams writable whatever their encoding; a closed one leads nowhere."""
    is_closed = sys.stdout is None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    accept_any_text(sys.stdout, sys.stderr)
    if is_closed and needs_output:
        raise SwarmError("Standard output is closed.", "Send it to a file, or to /dev/null.")


def _drop_output() -> None:
    """What is still buffered goes nowhere, so that leaving does not fail at it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
