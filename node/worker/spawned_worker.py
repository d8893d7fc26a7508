"""A process that its node has spawned, and the two sockets that reach it: orders, heartbeats."""

import asyncio
import contextlib
import socket
from dataclasses import dataclass

from node.config import worker_environment
from swarm.commands.package_finder import command_of

WORKER, STANDBY = "node.worker", "node.worker.standby"  # the modules that such a process runs


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """What a worker is started with: its device, torch threads, slowdown, sessions in a step."""

    device: str
    threads: int
    slowdown: float
    sessions_per_step: int = 0  # 0 = as many as wait

    @property
    def arguments(self) -> tuple[str, ...]:
        """The worker's command line; a standby is sent it as a line."""
        numbers = (self.threads, self.slowdown, self.sessions_per_step)
        return (self.device, *map(str, numbers))


@dataclass(frozen=True, slots=True)
class SpawnedWorker:
    """Holds a process and our ends of its sockets until somebody takes them, or abandons them."""

    process: asyncio.subprocess.Process
    orders: socket.socket
    beats: socket.socket

    @classmethod
    async def spawn(cls, module: str, *arguments: str) -> "SpawnedWorker":
        """Start a module with its ends of the sockets as first arguments; raises OSError."""
        (ours, theirs), (beats, beaten) = socket.socketpair(), socket.socketpair()
        with contextlib.ExitStack() as undo, theirs, beaten:
            undo.callback(ours.close)
            undo.callback(beats.close)
            process = await asyncio.create_subprocess_exec(
                *command_of(module),
                str(theirs.fileno()),
                str(beaten.fileno()),
                *arguments,
                env=worker_environment(),
                pass_fds=[theirs.fileno(), beaten.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the node, which drains first
            )
            undo.pop_all()
        return cls(process, ours, beats)

    async def abandon(self) -> None:
        """End a process that nobody counts on."""
        self.orders.close()
        self.beats.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
