"""WriteCoalescer: what is written within one turn of the event loop goes out in one piece.

A step of eight sessions is then one system call, one packet and one wake-up at the other end, and
its rows arrive there together. A turn is one piece of what has come in, and all that follows from
it; what is written outside of one waits until the loop has done all that is due.
"""

import asyncio
import threading
from collections.abc import Iterable

JOIN_BYTES = 64 * 1024  # below it one copy is cheaper than a second system call

Buffers = Iterable[bytes | memoryview]


class Turn(threading.local):
    """The turn of this thread's event loop: who has written in it; None outside of one."""

    writers: "list[WriteCoalescer] | None" = None

    def begin(self) -> None:
        """Something has come in."""
        self.writers = []

    def end(self) -> None:
        """All that follows from it is written: hand it over."""
        writers, self.writers = self.writers or [], None
        for writer in writers:
            writer.flush()


TURN = Turn()


class WriteCoalescer:
    """A writer that waits for the end of the loop's turn; order is kept."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._call_soon = asyncio.get_running_loop().call_soon
        self._waiting: list[bytes | memoryview] = []
        self._size = 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the operating system has not taken yet."""
        return self._size + self._transport.get_write_buffer_size()

    def write(self, buffers: Buffers) -> None:
        """Queue buffers; large ones are not copied."""
        if not self._waiting:
            if TURN.writers is None:
                self._call_soon(self.flush)
            else:
                TURN.writers.append(self)
        for buffer in buffers:
            self._waiting.append(buffer)
            self._size += len(buffer)
            if self._size > JOIN_BYTES:
                self.flush()

    def flush(self) -> None:
        """Hand over what waits."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        size, self._size = self._size, 0
        if self._transport.is_closing():
            return
        last = waiting.pop() if size > JOIN_BYTES and len(waiting[-1]) > JOIN_BYTES else b""
        if waiting:
            self._transport.write(b"".join(waiting))
        if last:
            self._transport.write(last)
