"""FrameProtocol: frames of one connection, handled as they come: no task wakes, nothing queues."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from swarm.errors import RemoteProtocolError
from swarm.p2p.arrivals import Arrivals
from swarm.p2p.write_coalescing import TURN
from swarm.wire.framing import FrameBuffer

LARGE_BYTES = 256 * 1024  # a frame that says how fast its way is
OnFrame = Callable[[memoryview, memoryview], None]  # header, body
NoteRate = Callable[[float], None]  # bytes per second


class FrameProtocol(asyncio.BufferedProtocol):
    """Reads into its own buffer; `ended` raises what ended the connection, at the latest its end.

    A RemoteProtocolError of `on_frame` ends it too; any other error is a bug and cuts the
    connection.
    """

    def __init__(
        self,
        on_frame: OnFrame,
        before: asyncio.BaseProtocol | None = None,
        note_rate: NoteRate = lambda _bytes_per_second: None,
    ) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.has_progress = True  # bytes came in since somebody last looked
        self.has_frame = False  # a whole frame came in since somebody last looked
        self._on_frame = on_frame
        self._before = before  # whose connection it was: its writers still wait for room
        self._frames = FrameBuffer()
        self._note_rate = note_rate
        self._arrivals: Arrivals | None = None  # of the frame that has begun, if it is large
        self._frames_heard = 0
        self._awaited: tuple[int, asyncio.Future[None]] | None = None  # frames

    @property
    def is_within_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._frames.is_within

    async def wait_for(self, frames: int) -> None:
        """Wait until so many frames have been handled; raises what ended the connection before."""
        if self._frames_heard < frames:
            heard = asyncio.get_running_loop().create_future()
            self._awaited = frames, heard
            await asyncio.wait((heard, self.ended), return_when=asyncio.FIRST_COMPLETED)
            if not heard.done():
                self.ended.result()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._frames.room()

    def buffer_updated(self, count: int) -> None:
        """So many bytes have come; after the end they do not count."""
        if not self.ended.done():
            self._frames.filled(count)
            self.has_progress = True
            if self._arrivals is not None:
                self._arrivals.add(count, time.perf_counter())
            self._hand_over()

    def add(self, data: bytes) -> None:
        """Take bytes that came before the connection was ours."""
        self._frames.add(data)
        self._hand_over()

    def eof_received(self) -> bool:
        """The other side says no more; whoever waits for the end closes."""
        self._end(EOFError("it closed the connection"))
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        if self._before:
            self._before.connection_lost(error)
        self._end(error or EOFError("the connection is closed"))

    def pause_writing(self) -> None:
        """Too much waits to be sent."""
        if self._before:
            self._before.pause_writing()

    def resume_writing(self) -> None:
        """There is room again."""
        if self._before:
            self._before.resume_writing()

    def _hand_over(self) -> None:
        TURN.begin()
        try:
            while not self.ended.done() and (frame := self._frames.take()):
                self.has_frame = True
                if self._arrivals is not None:
                    self._note_arrivals(self._arrivals)
                self._on_frame(*frame)
                self._count_frame()
        except RemoteProtocolError as error:
            self._end(error)
        finally:
            TURN.end()
        if self._arrivals is None and self._frames.expected_bytes >= LARGE_BYTES:
            self._arrivals = Arrivals()

    def _count_frame(self) -> None:
        self._frames_heard += 1
        if self._awaited is not None and self._awaited[0] <= self._frames_heard:
            if not self._awaited[1].done():
                self._awaited[1].set_result(None)
            self._awaited = None

    def _note_arrivals(self, arrivals: Arrivals) -> None:
        """A large frame is whole: say how fast it came, unless most of it was there at once."""
        self._arrivals = None
        rate = arrivals.rate(since=0.0)
        if rate is not None and arrivals.bytes >= LARGE_BYTES / 2:
            self._note_rate(rate)

    def _end(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # an end is news for whoever asks, not a failure of asyncio


async def take_over(
    protocol: FrameProtocol, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Let `protocol` have all that the reader still holds and all that comes, until the end.

    Raises what ended it: EOFError, OSError, RemoteProtocolError. The writer stays as it is.
    """
    transport: Any = writer.transport  # a Transport; uvloop's says so by what it can
    transport.set_protocol(protocol)
    reader.feed_eof()
    protocol.add(await reader.read())
    if transport.is_closing():
        raise ConnectionResetError("the connection is closed")
    transport.pause_reading()  # an end that only the reader has seen shows once more
    transport.resume_reading()
    await protocol.ended
