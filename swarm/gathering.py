"""Gathering: what is written within one turn of the event loop goes out in one piece.

A step of eight sessions is then one system call, one packet and one wake-up at the other end, and
its rows arrive there together.
"""

import asyncio
from collections.abc import Iterable

JOIN_BYTES = 64 * 1024  # below it one copy is cheaper than a second system call

Buffers = Iterable[bytes | memoryview]


class Gathering:
    """A writer that waits for the end of the loop's turn; order is kept."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._waiting: list[bytes | memoryview] = []
        self._size = 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the operating system has not taken yet."""
        return self._size + self._writer.transport.get_write_buffer_size()

    def write(self, buffers: Buffers) -> None:
        """Queue buffers; large ones are not copied."""
        for buffer in buffers:
            if not self._waiting:
                asyncio.get_running_loop().call_soon(self.flush)
            self._waiting.append(buffer)
            self._size += len(buffer)
            if self._size > JOIN_BYTES:
                self.flush()

    def flush(self) -> None:
        """Hand over what waits."""
        waiting, self._waiting = self._waiting, []
        self._size = 0
        *small, last = waiting or [b""]
        if len(last) > JOIN_BYTES:
            self._hand_over(b"".join(small))
            self._hand_over(last)
        else:
            self._hand_over(b"".join(waiting))

    def _hand_over(self, data: bytes | memoryview) -> None:
        if data and not self._writer.transport.is_closing():
            self._writer.write(data)
