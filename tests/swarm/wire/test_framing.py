"""FrameBuffer: any cut of a stream gives the same frames, and memory follows what has come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import RemoteProtocolError
from swarm.wire.framing import BODY_CAP, GROWTH, PREFIX, SMALL_BYTES, FrameBuffer

LARGE = 3 * SMALL_BYTES
SIZES = st.sampled_from([0, 1, 11, 300, SMALL_BYTES - 20, SMALL_BYTES, LARGE])


def frame_of(header: bytes, body: bytes) -> bytes:
    return PREFIX.pack(len(header), len(body)) + header + body


def fill(frames: FrameBuffer, data: bytes) -> int:
    """Put in as much as there is room for; returns how much that was."""
    room = frames.room()
    assert len(room) > 0
    count = min(len(room), len(data))
    room[:count] = data[:count]
    frames.filled(count)
    return count


def taken(frames: FrameBuffer) -> list[tuple[memoryview, memoryview]]:
    found = []
    while frame := frames.take():
        found.append(frame)
    return found


@given(
    st.lists(st.tuples(SIZES, SIZES), max_size=8),
    st.lists(st.sampled_from([1, 7, 4000, SMALL_BYTES, 2 * LARGE]), min_size=1),
    st.booleans(),
)
def test_any_cut_of_a_stream_gives_the_same_frames(
    sizes: list[tuple[int, int]], cuts: list[int], adds: bool
) -> None:
    sent = [
        (bytes([at]) * min(header, 60_000), bytes([at + 100]) * body)
        for at, (header, body) in enumerate(sizes)
    ]
    stream = b"".join(frame_of(*each) for each in sent)
    frames = FrameBuffer()
    found: list[tuple[memoryview, memoryview]] = []
    at = turn = 0
    while at < len(stream):
        cut = cuts[turn % len(cuts)] if turn < 500 else LARGE
        turn += 1
        piece = stream[at : at + cut]
        if adds:
            frames.add(piece)
            at += len(piece)
        else:
            at += fill(frames, piece)
        found += taken(frames)
    whole = [(bytes(header), bytes(body)) for header, body in found]
    assert whole == sent  # all of them at the end: none was written over


def test_a_large_frame_is_not_copied_and_a_small_one_leaves_the_buffer_free() -> None:
    frames = FrameBuffer()
    small, large = frame_of(b"h", b"small"), frame_of(b"h", bytes(LARGE))
    fill(frames, small)
    ((_, body),) = taken(frames)
    assert body.obj is not frames._data
    stream = large
    while stream:
        stream = stream[fill(frames, stream) :]
        found = taken(frames)
    assert found[0][1].obj is frames._data
    fill(frames, small)
    assert len(frames._data) == SMALL_BYTES
    assert found[0][1] == bytes(LARGE)


def test_a_buffer_grows_with_what_has_come_and_not_with_what_is_promised() -> None:
    frames, come = FrameBuffer(), PREFIX.size
    fill(frames, PREFIX.pack(10, BODY_CAP))
    while come < 1 << 20:
        assert frames.take() is None
        come += fill(frames, bytes(5000))
        assert len(frames._data) <= max(SMALL_BYTES, GROWTH * come)


def test_a_promise_above_the_caps_is_refused() -> None:
    frames = FrameBuffer()
    fill(frames, PREFIX.pack(10, BODY_CAP + 1))
    with pytest.raises(RemoteProtocolError, match="caps"):
        frames.take()
