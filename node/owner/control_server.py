"""ControlServer: hears the owner's orders on the node's control socket, each within a deadline."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from swarm.commands.control_socket import (
    ANSWER_CAP,
    ANSWER_SECONDS,
    LENGTH,
    ORDER_CAP,
    bind_socket,
    is_ours,
    packed,
    remove_socket,
    unpacked,
)
from swarm.errors import BadInput, SwarmError
from swarm.task_set import TaskSet

CONNECTIONS = 8  # at a time; further ones are closed
ORDER_SECONDS = 2.0  # for an order to come, and for an answer to be taken
ENOUGH_BYTES = 1 << 16  # of an answer that waits to be taken

logger = logging.getLogger(__name__)
Words = Mapping[str, Any]
CarryOut = Callable[[str, Words], Awaitable[Words]]
LINGERS = "lingers"  # in an answer: the connection stays open until the node ends


@asynccontextmanager
async def open_control(folder: Path, carry_out: CarryOut) -> AsyncIterator[None]:
    """Hold the socket in a node's folder, whose lock we have; without it the node lives, too."""
    try:
        bound = bind_socket(folder)
    except OSError as error:
        logger.warning("no orders can be given to this node (`swarm pause`): %s", error)
        yield
        return
    try:
        async with TaskSet() as tasks:
            server = await asyncio.start_unix_server(
                ControlServer(carry_out, tasks).hear, sock=bound
            )
            try:
                yield
            finally:
                server.close()
    finally:
        remove_socket(folder)


class ControlServer:
    """Answers each connection in a task of its own: one that is slow holds nobody else up."""

    def __init__(self, carry_out: CarryOut, tasks: TaskSet) -> None:
        self._carry_out = carry_out
        self._tasks = tasks

    def hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a connection, unless it is not the owner's, or there are too many."""
        if len(self._tasks) >= CONNECTIONS or not _is_owners(writer):
            writer.transport.abort()
            return
        serving = self._tasks.create("an order", self._serve(reader, writer))
        serving.add_done_callback(lambda _: writer.close())  # also if it never began

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, EOFError):
            async with asyncio.timeout(ORDER_SECONDS):
                order = await _read_order(reader)
            said = await self._answer(order)
            writer.transport.set_write_buffer_limits(ENOUGH_BYTES)
            writer.write(packed(said, ANSWER_CAP))
            async with asyncio.timeout(ORDER_SECONDS):
                await writer.drain()
            if said.get("answer", {}).get(LINGERS):
                await asyncio.Event().wait()

    async def _answer(self, order: object) -> Words:
        """What an order comes to; whatever goes wrong is an answer, too."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return {"answer": await self._carry_out(*_words_of(order))}
        except SwarmError as error:
            return {"error": [error.cause, error.next_step]}
        except TimeoutError:
            return {"error": ["The node has not done it in time.", "See `swarm status`."]}
        except Exception:  # an island: one order must not end the node
            logger.exception("an order on the control socket failed")
            return {"error": ["The node stumbled over the order.", "Its log says why."]}


async def _read_order(reader: asyncio.StreamReader) -> object:
    """The order, or None for what is none; raises EOFError, OSError."""
    (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    if size > ORDER_CAP:
        return None
    data = await reader.readexactly(size)
    with suppress(ValueError):
        return unpacked(data, ORDER_CAP)
    return None


def _words_of(order: object) -> tuple[str, Words]:
    """The name of an order, and what else it says; raises BadInput."""
    match order:
        case {"order": str(name), **words}:
            return name, {str(word): value for word, value in words.items()}
    raise BadInput("This is no order.", "Use the same version of `swarm` as the node.")


def _is_owners(writer: asyncio.StreamWriter) -> bool:
    line = writer.get_extra_info("socket")
    try:
        return line is not None and is_ours(line)
    except (OSError, ValueError):
        return False
