"""PauseRules: when a node pauses by itself - while a command succeeds, or its owner is active."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Protocol

from node.config import NodeConfig
from node.owner.owner_activity import read_idle_seconds

LOOK_SECONDS = 3.0  # between two looks of a rule
COMMAND_SECONDS = 5.0  # for the command to end
CLEAR_LOOKS = 3  # in a row without the cause, after which a pause for it ends
NOT_RUN = (126, 127)  # what a shell returns for a command that cannot be run, or is not there

logger = logging.getLogger(__name__)
Note = Callable[..., None]  # note(wants=...)


class PauseRule(Protocol):
    """Something that wants pauses; `name` says which one to people."""

    name: str

    async def watch(self, note: Note) -> None:
        """Say whether it wants one, again and again; never ends."""


class CommandRule:
    """Pauses while a shell command exits with 0, and until it has not for some looks in a row.

    A command that cannot be run, is killed, or takes too long wants nothing; that is said once.
    """

    def __init__(
        self,
        command: str,
        *,
        look_seconds: float = LOOK_SECONDS,
        command_seconds: float = COMMAND_SECONDS,
    ) -> None:
        self.name = f"`{command}` succeeds"
        self._command = command
        self._look_seconds, self._command_seconds = look_seconds, command_seconds
        self._clear_looks = CLEAR_LOOKS
        self._has_complained = False

    async def watch(self, note: Note) -> None:
        """Run the command every few seconds; never ends."""
        while True:
            self.look_at(await self._exit_code(), note)
            await asyncio.sleep(self._look_seconds)

    def look_at(self, code: int | None, note: Note) -> None:
        """Note what an exit code says; None is a command that did not come to an end."""
        if code is None or code < 0 or code in NOT_RUN:
            self._complain(code)
        self._clear_looks = 0 if code == 0 else self._clear_looks + 1
        if self._clear_looks in (0, CLEAR_LOOKS):
            note(wants=code == 0)

    async def _exit_code(self) -> int | None:
        """Run it once, without input or output; it and its children end in time."""
        process = await asyncio.create_subprocess_shell(
            self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._command_seconds):
                return await process.wait()
        except TimeoutError:
            return None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    def _complain(self, code: int | None) -> None:
        if not self._has_complained:
            self._has_complained = True
            how = f"failed with {code}" if code is not None else "does not end"
            logger.warning("%s: the command %s; it pauses nothing", self.name, how)


class IdleRule:
    """Lets the node run only when its owner has not been at the machine for so long."""

    def __init__(
        self,
        idle_seconds: float,
        *,
        look_seconds: float = LOOK_SECONDS,
        read: Callable[[], Awaitable[float | None]] = read_idle_seconds,
    ) -> None:
        self.name = "somebody is at work on this machine"
        self._idle_seconds, self._look_seconds = idle_seconds, look_seconds
        self._read = read
        self._has_complained = False

    async def watch(self, note: Note) -> None:
        """Look every few seconds; never ends."""
        while True:
            self.look_at(await self._read(), note)
            await asyncio.sleep(self._look_seconds)

    def look_at(self, seconds: float | None, note: Note) -> None:
        """Note that the owner has been idle for so long; None: nothing here tells of that."""
        if seconds is None and not self._has_complained:
            self._has_complained = True
            logger.warning("%s: nothing here tells whether somebody is at work", self.name)
        note(wants=seconds is not None and seconds < self._idle_seconds)


def rules_of(config: NodeConfig) -> list[PauseRule]:
    """The rules that the owner has given with the node's command line."""
    rules: list[PauseRule] = []
    if config.pause_while:
        rules.append(CommandRule(config.pause_while))
    if config.idle_seconds:
        rules.append(IdleRule(config.idle_seconds))
    return rules
