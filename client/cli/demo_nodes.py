"""Crew: the demo's node processes; started here, watched here, ended here and nowhere else."""

import asyncio
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Self

from client.cli.cast import Role
from swarm.commands.package_finder import command_of
from swarm.errors import SwarmError

STOP_SECONDS = 5.0  # within which a node should leave
KILL_SECONDS = 15.0
INVITE = "invite: "
MEANING = {  # of the word that begins a line of a node, for somebody who waits
    "node": "starts",
    "offer": "is in no plan yet",
    "waiting": "waits",
    "spare": "waits",
    "plan": "loads, or compiles",
    "lost": "begins again",
    "ready": "is ready",
}
OnLine = Callable[[str, str], None]  # name of the node, line


class CrewMember:
    """One node process and what it has printed."""

    def __init__(self, role: Role, process: Process, on_line: OnLine) -> None:
        self.role = role
        self.process = process
        self.lines: list[str] = []
        self._invite = ""
        self._told = asyncio.Event()  # the invite, or the end
        self._on_line = on_line
        self.reading = asyncio.create_task(self._read())

    async def invite(self) -> str:
        """The invite that a host prints; raises SwarmError if it ends without."""
        await self._told.wait()
        if not self._invite:
            raise SwarmError(f"The node {self.role.name} ended: {self.last_words()}")
        return self._invite

    def state(self) -> str:
        """What it does or waits for, in its own words: the last turning point that it told."""
        told = (line for line in reversed(self.lines) if line.startswith(tuple(MEANING)))
        line = next(told, "node: it has not begun")
        word, _, rest = line.partition(": ")
        return f"{MEANING[word]}: {rest}"

    def last_words(self) -> str:
        """The end of what it printed."""
        return " | ".join(self.lines[-3:]) or "it said nothing"

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            line = raw.decode(errors="replace").rstrip()
            self.lines.append(line)
            if line.startswith(INVITE):
                self._invite = line.removeprefix(INVITE)
                self._told.set()
            self._on_line(self.role.name, line)
        self._told.set()


class Crew:
    """Node processes with state folders of their own; leaving the block ends them all."""

    def __init__(self, folder: Path, on_line: OnLine) -> None:
        self._folder = folder
        self._on_line = on_line
        self.members: list[CrewMember] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self, role: Role, *how: str) -> CrewMember:
        """Start a node; `how` is --host or --join INVITE."""
        process = await asyncio.create_subprocess_exec(
            *command_of("swarm.node"),
            *how,
            *_flags_of(role, self._folder / role.name),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
        )
        member = CrewMember(role, process, self._on_line)
        self.members.append(member)
        return member

    def ended(self) -> CrewMember | None:
        """A node that is no longer there, if any."""
        gone = (member for member in self.members if member.process.returncode is not None)
        return next(gone, None)

    async def stop(self) -> list[str]:
        """Interrupt every node and wait; returns a complaint for each that did not end well."""
        members, self.members = self.members, []
        return [c for c in await asyncio.gather(*(_stop(each) for each in members)) if c]


def _flags_of(role: Role, state: Path) -> Sequence[str]:
    return (
        *("--memory", f"{role.memory_bytes}B", "--slowdown", str(role.slowdown)),
        *("--name", role.name, "--listen", "127.0.0.1", "--threads", "1", "--state", str(state)),
        *("--dtype", "f32"),  # the answers are compared, token by token, with a model in float32
    )


async def _stop(member: CrewMember) -> str:
    process, name = member.process, member.role.name
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
    asked = perf_counter()
    try:
        await asyncio.wait_for(process.wait(), KILL_SECONDS)
    except TimeoutError:
        process.kill()
    code = await process.wait()
    took = perf_counter() - asked
    await member.reading
    if code:
        return f"{name} ended with code {code}: {member.last_words()}"
    return f"{name} took {took:.1f} s to leave" if took > STOP_SECONDS else ""
