"""FrameBuffer: cuts a stream of bytes into frames; large ones are handed over without a copy.

A frame is `!IQ` (header length, body length), a header, a body. Caps are checked before anything
is allocated.
"""

import struct

from swarm.errors import RemoteProtocolError

HEADER_CAP = 64 * 1024
BODY_CAP = 32 * 1024 * 1024  # 256 rows of 32,768 float32, wider than any model's
PREFIX = struct.Struct("!IQ")
SMALL_BYTES = 64 * 1024  # a buffer that is kept; a frame within it is copied out
GROWTH = 4  # a buffer grows with what has come, not with what is promised

Frame = tuple[memoryview, memoryview]  # header, body


class FrameBuffer:
    """Bytes go in where there is `room`, or by `add`; whole frames are taken out."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._view = memoryview(self._data)
        self._start = self._end = 0  # of the bytes that nobody has taken yet
        self._expected = 0  # bytes of the frame that they begin
        self._is_lent = False  # a frame that was taken out lies in it

    def room(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        waiting = self._settle()
        if self._end == len(self._data):
            self._move(max(SMALL_BYTES, min(self._expected, waiting * GROWTH)))
        return self._view[self._end :]

    @property
    def is_within(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._end > self._start

    @property
    def expected_bytes(self) -> int:
        """How large the frame is that has begun, if its prefix is there; else zero."""
        return self._expected if self.is_within else 0

    def filled(self, count: int) -> None:
        """So many bytes of the room are filled."""
        self._end += count

    def add(self, data: bytes | memoryview) -> None:
        """Append what has arrived."""
        waiting = self._settle()
        if self._end + len(data) > len(self._data):
            self._move(max(waiting + len(data), waiting * GROWTH))
        self._view[self._end : self._end + len(data)] = data
        self._end += len(data)

    def take(self) -> Frame | None:
        """The next whole frame, if it is there; raises RemoteProtocolError above the caps."""
        start, waiting = self._start, self._end - self._start
        if waiting < PREFIX.size:
            self._expected = 0
            return None
        header_size, body_size = read_prefix(self._data, start)
        split = PREFIX.size + header_size
        self._expected = size = split + body_size
        if waiting < size:
            return None
        self._start += size
        frame = self._view[start : start + size]
        if size > SMALL_BYTES:
            self._is_lent = True
        else:
            frame = memoryview(bytes(frame))
        return frame[PREFIX.size : split], frame[split:]

    def _settle(self) -> int:
        """Begin at the front again if nothing waits; returns how many bytes do."""
        if self._start == self._end and not self._is_lent:
            self._start = self._end = 0
        return self._end - self._start

    def _move(self, size: int) -> None:
        """Go on in another buffer of so many bytes; what waits comes along."""
        waiting = self._view[self._start : self._end]
        self._data = bytearray(size)
        self._view = memoryview(self._data)
        self._view[: len(waiting)] = waiting
        self._start, self._end, self._is_lent = 0, len(waiting), False


def read_prefix(data: bytes | bytearray | memoryview, start: int = 0) -> tuple[int, int]:
    """Return (header bytes, body bytes) of a frame; raises RemoteProtocolError above the caps."""
    header_size, body_size = PREFIX.unpack_from(data, start)
    if header_size > HEADER_CAP or body_size > BODY_CAP:
        raise RemoteProtocolError(f"A frame of {header_size} + {body_size} bytes exceeds the caps.")
    return header_size, body_size
