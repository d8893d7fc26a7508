"""FrameStream: one libp2p stream that carries whole frames and counts silent beats."""

import asyncio
from collections.abc import Iterable

from swarm.errors import RemoteProtocolError
from swarm.p2p.frame_protocol import FrameProtocol, NoteRate, OnFrame, take_over
from swarm.p2p.write_coalescing import WriteCoalescer
from swarm.wire.framing import PREFIX

HIGH_WATER_BYTES = 256 * 1024  # of frames waiting for p2pd before a sender has to wait
LOW_WATER_BYTES = 64 * 1024  # with fewer of them a stream may be followed by another one
MISSES = 3  # silent ticks after which the other side is dead
COUNT_BYTES = 8  # of the number of frames on the stream before
FRAME_TICKS = 60  # for one frame to arrive whole: who drips holds memory and a place

STREAM_ERRORS = (ConnectionError, EOFError, OSError)


class FrameStream:
    """Frames over a connection; `tick` is called at a steady beat by the owner."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        is_relayed: bool = False,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._transport = writer.transport
        self._coalescer = WriteCoalescer(writer.transport)
        self._protocol: FrameProtocol | None = None
        self._misses = 0
        self._slow_ticks = 0
        self.has_sent = False  # a frame went out since the last tick
        self.has_data = False  # a frame other than a ping came in since the last tick
        self.quiet_beats = 0  # beats of its owner without such a frame
        self.bad_frames = 0
        self.is_relayed = is_relayed
        self.frames_sent = 0
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    async def write(self, buffers: Iterable[bytes | memoryview]) -> None:
        """Queue a whole frame as soon as there is room; raises ConnectionError."""
        await self._writer.drain()
        if self._transport.is_closing():
            raise ConnectionResetError("the stream is closed")
        self._coalescer.write(buffers)
        self.frames_sent += 1
        self.has_sent = True

    def write_now(self, buffers: Iterable[bytes | memoryview]) -> bool:
        """Queue a small frame if the transport is free; False if it is not."""
        if self._transport.is_closing() or self._coalescer.waiting_bytes > HIGH_WATER_BYTES:
            return False
        self._coalescer.write(buffers)
        self.frames_sent += 1
        return True

    @property
    def is_free(self) -> bool:
        """Whether p2pd has taken nearly all that was written."""
        return self._coalescer.waiting_bytes <= LOW_WATER_BYTES

    def begin_behind(self, before: "FrameStream") -> None:
        """Say how many frames of an earlier stream come before ours."""
        self._coalescer.write([before.frames_sent.to_bytes(COUNT_BYTES)])

    async def read_frames_before(self) -> int:
        """How many frames of an earlier stream come before those of this one; STREAM_ERRORS."""
        return int.from_bytes(await self._reader.readexactly(COUNT_BYTES))

    async def wait_for(self, frames: int) -> None:
        """Wait until so many frames have been handled; raises what ended the stream before."""
        if self._protocol is None:
            raise RemoteProtocolError("A stream follows one that has not begun.")
        await self._protocol.wait_for(frames)

    async def hear(
        self, on_frame: OnFrame, note_rate: NoteRate = lambda _bytes_per_second: None
    ) -> None:
        """Handle every frame as it comes, until the end, which is raised: one of STREAM_ERRORS.

        `note_rate` hears how fast large frames come.

        A RemoteProtocolError of `on_frame`, or a prefix above the caps, is such an end.
        """
        self._protocol = FrameProtocol(on_frame, self._transport.get_protocol(), note_rate)
        await take_over(self._protocol, self._reader, self._writer)

    def tick(self) -> bool:
        """Count a silent beat, or one within a frame; True when there were too many of them."""
        protocol = self._protocol
        if protocol is None:
            self._misses += 1
            return self._misses >= MISSES
        self._misses = 0 if protocol.has_progress else self._misses + 1
        is_slow = protocol.is_within_frame and not protocol.has_frame
        self._slow_ticks = self._slow_ticks + 1 if is_slow else 0
        protocol.has_progress = protocol.has_frame = False
        return self._misses >= MISSES or self._slow_ticks >= FRAME_TICKS

    async def wait_for_end(self, timeout_seconds: float) -> None:
        """Wait until the other side ends the stream, and end it if it does not."""
        if self._protocol is not None:
            await asyncio.wait((self._protocol.ended,), timeout=timeout_seconds)
        self.abort()

    def abort(self) -> None:
        """Drop the stream with whatever waits in it."""
        self._transport.abort()

    async def close(self, timeout_seconds: float) -> None:
        """Flush and end the stream; gives up silently after the timeout."""
        self._coalescer.flush()
        self._writer.close()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._writer.wait_closed()
        except (TimeoutError, *STREAM_ERRORS):
            self.abort()


def frame_of(header: bytes, body: bytes = b"") -> list[bytes | memoryview]:
    """A frame around a header and a body that are not a Message."""
    return [PREFIX.pack(len(header), len(body)) + header, body]


async def read_small_frame(
    reader: asyncio.StreamReader, header_cap: int, body_cap: int
) -> tuple[bytes, bytes]:
    """Read one frame under caps of its own; raises RemoteProtocolError above them."""
    header_size, body_size = PREFIX.unpack(await reader.readexactly(PREFIX.size))
    if header_size > header_cap or body_size > body_cap:
        raise RemoteProtocolError(f"A frame of {header_size} + {body_size} bytes exceeds the caps.")
    return await reader.readexactly(header_size), await reader.readexactly(body_size)
