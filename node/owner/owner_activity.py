"""Owner activity: for how long nobody has typed at this machine, or used its desktop; Linux.

Two things tell of it without rights of root: when input was last read from a terminal (the access
time of its device, which the kernel keeps to 8 s), and the idle hint of systemd-logind, which
desktops set after an idle time of their own. Neither tells of a game pad, nor of a film.
"""

import asyncio
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LOGINCTL_SECONDS = 2.0
TERMINALS = ("/dev/pts/[0-9]*", "/dev/tty[0-9]*")
HINT = ("loginctl", "show", "--property=IdleHint", "--property=IdleSinceHint")
ANSWER_CAP = 4096  # bytes of loginctl's words


async def read_idle_seconds() -> float | None:
    """For how long nobody has been at work here; None if nothing tells of it."""
    now = time.time()
    found = [seconds_since_input(now), seconds_of_hint(await _read_hint(), now)]
    return min((each for each in found if each is not None), default=None)


def seconds_since_input(now: float, terminals: Iterable[str | Path] | None = None) -> float | None:
    """Since somebody typed into a terminal; None if there is none."""
    ages = []
    for terminal in _terminals() if terminals is None else terminals:
        with suppress(OSError):  # it was closed meanwhile
            ages.append(max(0.0, now - os.stat(terminal).st_atime))
    return min(ages, default=None)


def seconds_of_hint(said: str, now: float) -> float | None:
    """Since all sessions of logind are idle, 0 if one is not; None if it does not say."""
    words = dict(line.partition("=")[::2] for line in said.splitlines())
    if words.get("IdleHint") == "no":
        return 0.0
    since = words.get("IdleSinceHint", "")
    if words.get("IdleHint") != "yes" or not since.isdecimal() or since == "0":
        return None
    return max(0.0, now - int(since) / 1e6)


def _terminals() -> list[Path]:
    return [path for pattern in TERMINALS for path in Path("/").glob(pattern[1:])]


async def _read_hint() -> str:
    """What loginctl says; nothing where there is none, or it hangs."""
    try:
        process = await asyncio.create_subprocess_exec(
            *HINT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return ""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LOGINCTL_SECONDS):
            return (await process.stdout.read(ANSWER_CAP)).decode(errors="replace")
    except TimeoutError:
        return ""
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        while await process.stdout.read(ANSWER_CAP):
            pass  # an end is seen only behind all that was said
        await process.wait()
