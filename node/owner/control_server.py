"""ControlServer: hears the owner's orders on the node's control socket, each within a deadline."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from swarm.commands.control_socket import (
    ANSWER_CAP,
    ANSWER_SECONDS,
    BEAT_SECONDS,
    LENGTH,
    ORDER_CAP,
    bind_socket,
    is_ours,
    packed,
    remove_socket,
    unpacked,
    words_of_error,
)
from swarm.errors import BadInput, SwarmError
from swarm.task_set import TaskSet

CONNECTIONS = 16  # at a time; further ones are closed
ORDER_SECONDS = 2.0  # for an order to come, and for an answer to be taken
TAKEN_SECONDS = 60.0  # for a bit of an answer to be taken: who reads may be stopped for a while
ENOUGH_BYTES = 1 << 16  # of an answer that waits to be taken

logger = logging.getLogger(__name__)
Words = Mapping[str, Any]
CarryOut = Callable[[str, Words], Awaitable[Words]]
Begin = Callable[[asyncio.Event], AsyncGenerator[Words, None]]  # the event: that is enough
Answers = Callable[[Words, asyncio.Event], AsyncGenerator[Words, None]]
END: Words = {}  # of what is said bit by bit
LINGERS = "lingers"  # in an answer: the connection stays open until the node ends


@asynccontextmanager
async def open_control(
    folder: Path, carry_out: CarryOut, bit_by_bit: Mapping[str, Answers] | None = None
) -> AsyncIterator[None]:
    """Hold the socket in a node's folder, whose lock we have; without it the node lives, too.

    Orders that are answered `bit_by_bit` are named there, and all others are carried out.
    """
    try:
        bound = bind_socket(folder)
    except OSError as error:
        logger.warning("no orders can be given to this node (`swarm pause`): %s", error)
        yield
        return
    try:
        async with TaskSet() as tasks:
            control = ControlServer(carry_out, tasks, bit_by_bit or {})
            server = await asyncio.start_unix_server(control.hear, sock=bound)
            try:
                yield
            finally:
                server.close()
    finally:
        remove_socket(folder)


class ControlServer:
    """Answers each connection in a task of its own: one that is slow holds nobody else up."""

    def __init__(
        self, carry_out: CarryOut, tasks: TaskSet, bit_by_bit: Mapping[str, Answers]
    ) -> None:
        self._carry_out = carry_out
        self._tasks = tasks
        self._bit_by_bit = bit_by_bit

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
            writer.transport.set_write_buffer_limits(ENOUGH_BYTES)
            if (begin := self._long_answer_to(order)) is not None:
                await _answer_bit_by_bit(reader, writer, begin)
            else:
                await self._answer_at_once(order, writer)

    def _long_answer_to(self, order: object) -> Begin | None:
        """How an order is answered bit by bit, if it is."""
        with suppress(BadInput):
            name, words = _words_of(order)
            if answers := self._bit_by_bit.get(name):
                return partial(answers, words)
        return None

    async def _answer_at_once(self, order: object, writer: asyncio.StreamWriter) -> None:
        said = await _said_of(self._carried_out(order))
        await _send(writer, said, ORDER_SECONDS)
        if said.get("answer", {}).get(LINGERS):
            await asyncio.Event().wait()

    async def _carried_out(self, order: object) -> Words:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self._carry_out(*_words_of(order))


async def _answer_bit_by_bit(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, begin: Begin
) -> None:
    """Say all that an order is answered with, or as much as is listened to; raises OSError."""
    enough = asyncio.Event()
    async with TaskSet() as tasks:
        listening = tasks.create("listening", _until_gone(reader, enough), is_awaited=True)
        telling = tasks.create("answering", _tell(writer, begin(enough)), is_awaited=True)
        tasks.create("showing signs of life", _beat(writer))
        await asyncio.wait((listening, telling), return_when=asyncio.FIRST_COMPLETED)
        if telling.done():
            telling.result()


async def _tell(writer: asyncio.StreamWriter, answers: AsyncGenerator[Words, None]) -> None:
    """Say what comes, in order; what goes wrong is the last word. Raises OSError, TimeoutError."""
    async with aclosing(answers):
        is_over = False
        while not is_over:
            said = await _said_of(anext(answers, END))
            is_over = said.get("answer") is END or "error" in said
            if said.get("answer") is not END:
                await _send(writer, said, TAKEN_SECONDS)


async def _until_gone(reader: asyncio.StreamReader, enough: asyncio.Event) -> None:
    """Return when the other side hangs up; any word of it sets `enough`."""
    with suppress(OSError):
        while await reader.read(ENOUGH_BYTES):
            enough.set()


async def _beat(writer: asyncio.StreamWriter) -> None:
    """Show again and again that the node lives; ends when the connection does."""
    with suppress(OSError):
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if not writer.transport.get_write_buffer_size():
                await _send(writer, {"answer": {}}, TAKEN_SECONDS)


async def _send(writer: asyncio.StreamWriter, said: Words, seconds: float) -> None:
    writer.write(packed(said, ANSWER_CAP))
    async with asyncio.timeout(seconds):
        await writer.drain()


async def _said_of(work: Awaitable[Words]) -> Words:
    """What an order comes to; whatever goes wrong is an answer, too."""
    try:
        return {"answer": await work}
    except SwarmError as error:
        return words_of_error(error)
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
