"""FrameProtocol: it takes a connection over from its reader, loses nothing, and sees every end."""

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from swarm.errors import RemoteProtocolError
from swarm.p2p.frame_protocol import FrameProtocol, take_over
from swarm.p2p.frame_stream import FrameStream, frame_of
from swarm.p2p.write_coalescing import WriteCoalescer

Story = Callable[[asyncio.StreamReader, asyncio.StreamWriter, socket.socket], Awaitable[None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def tell(request: pytest.FixtureRequest) -> Callable[[Story], None]:
    async def connected(story: Story) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            async with asyncio.timeout(10):
                await story(reader, writer, theirs)
            writer.transport.abort()

    def run(story: Story) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(connected(story))

    return run


def frame(text: bytes) -> bytes:
    return b"".join(frame_of(text, b"body"))


async def until(come: Callable[[], bool]) -> None:
    while not come():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def pour(stream: FrameStream) -> None:
    async with asyncio.timeout(0.2):
        while True:
            await stream.write(frame_of(b"h", bytes(1 << 18)))


async def drain(theirs: socket.socket) -> None:
    theirs.setblocking(False)
    async with asyncio.timeout(0.2):
        while True:
            await asyncio.get_running_loop().sock_recv(theirs, 1 << 20)


def test_what_the_reader_holds_comes_first_and_then_what_follows(
    tell: Callable[[Story], None],
) -> None:
    async def story(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, theirs: socket.socket
    ) -> None:
        heard: list[bytes] = []
        theirs.sendall(b"hello" + frame(b"one") + frame(b"two")[:9])
        assert await reader.readexactly(5) == b"hello"
        protocol = FrameProtocol(
            lambda header, body: heard.append(bytes(header)), writer.transport.get_protocol()
        )
        hearing = asyncio.create_task(take_over(protocol, reader, writer))
        await until(lambda: len(heard) == 1)
        theirs.sendall(frame(b"two")[9:] + frame(b"three"))
        await until(lambda: len(heard) == 3)
        assert heard == [b"one", b"two", b"three"]
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            await hearing

    tell(story)


def test_an_end_that_only_the_reader_has_seen_is_seen_again(tell: Callable[[Story], None]) -> None:
    async def story(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, theirs: socket.socket
    ) -> None:
        heard: list[bytes] = []
        theirs.sendall(b"!" + frame(b"last"))
        theirs.shutdown(socket.SHUT_WR)
        assert await reader.readexactly(1) == b"!"
        await asyncio.sleep(0.02)  # the reader notes the end
        with pytest.raises(EOFError):
            await FrameStream(reader, writer).hear(lambda header, _: heard.append(bytes(header)))
        assert heard == [b"last"]

    tell(story)


def test_a_frame_that_is_refused_ends_it_and_nothing_after_it_counts(
    tell: Callable[[Story], None],
) -> None:
    async def story(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, theirs: socket.socket
    ) -> None:
        heard: list[bytes] = []

        def refuse(header: memoryview, _: memoryview) -> None:
            heard.append(bytes(header))
            raise RemoteProtocolError("no")

        theirs.sendall(frame(b"one") + frame(b"two"))
        with pytest.raises(RemoteProtocolError, match="no"):
            await FrameStream(reader, writer).hear(refuse)
        theirs.sendall(frame(b"three"))
        await asyncio.sleep(0.02)
        assert heard == [b"one"]

    tell(story)


def test_a_bug_of_the_handler_cuts_the_connection_and_is_raised(
    tell: Callable[[Story], None],
) -> None:
    async def story(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, theirs: socket.socket
    ) -> None:
        def stumble(header: memoryview, body: memoryview) -> None:
            raise KeyError("a bug")

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        hearing = asyncio.create_task(FrameStream(reader, writer).hear(stumble))
        await asyncio.sleep(0)
        theirs.sendall(frame(b"one"))
        with pytest.raises(KeyError, match="a bug"):
            await hearing
        assert theirs.recv(1) == b""

    tell(story)


def test_a_writer_of_a_connection_taken_over_still_waits_for_room(
    tell: Callable[[Story], None],
) -> None:
    async def story(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, theirs: socket.socket
    ) -> None:
        stream = FrameStream(reader, writer)
        hearing = asyncio.create_task(stream.hear(lambda header, body: None))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await pour(stream)
        assert not stream.write_now(frame_of(b"h", b"more"))
        with pytest.raises(TimeoutError):
            await drain(theirs)
        assert stream.write_now(frame_of(b"h", b"more"))
        await stream.write(frame_of(b"h", b"still more"))
        hearing.cancel()

    tell(story)


def test_what_is_written_while_a_piece_is_handled_goes_out_as_one(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, theirs: socket.socket
    ) -> None:
        written: list[bytes] = []

        class Transport(asyncio.Transport):
            def write(self, data: bytes | bytearray | memoryview) -> None:
                written.append(bytes(data))

            def is_closing(self) -> bool:
                return False

            def get_write_buffer_size(self) -> int:
                return 0

        coalescer = WriteCoalescer(Transport())
        protocol = FrameProtocol(lambda header, body: coalescer.write([header, body]))
        protocol.add(frame(b"one") + frame(b"two"))
        assert written == [b"onebody" + b"twobody"]
        coalescer.write([b"later"])
        assert len(written) == 1
        await asyncio.sleep(0)
        assert written[1:] == [b"later"]
        protocol.ended.cancel()

    tell(story)


def test_an_end_that_nobody_asks_for_is_no_failure_of_the_loop() -> None:
    async def story() -> None:
        heard: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, what: heard.append(what))
        protocol = FrameProtocol(lambda _header, _body: None)
        protocol.connection_lost(BrokenPipeError())
        assert isinstance(protocol.ended.exception(), BrokenPipeError)
        other = FrameProtocol(lambda _header, _body: None)
        other.connection_lost(BrokenPipeError())
        del other
        gc.collect()
        assert heard == []

    asyncio.run(story())


def test_who_drips_a_frame_is_given_up(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault: one byte now and then was progress, for ever."""
    monkeypatch.setattr("swarm.p2p.frame_stream.FRAME_TICKS", 5)

    async def story(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, theirs: socket.socket
    ) -> None:
        stream = FrameStream(reader, writer)
        heard = asyncio.create_task(stream.hear(lambda _header, _body: None))
        text = frame(b"header")
        outcomes = []
        for byte in (text + text)[: len(text) + 6]:  # a whole frame, then the next one drips
            theirs.send(bytes([byte]))
            await until(lambda: stream._protocol is not None and stream._protocol.has_progress)
            outcomes.append(stream.tick())
        assert outcomes.index(True) == 4
        heard.cancel()
        await asyncio.wait([heard])

    tell(story)


def test_who_sends_whole_frames_goes_on_whatever_their_number(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm.p2p.frame_stream.FRAME_TICKS", 2)

    async def story(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, theirs: socket.socket
    ) -> None:
        stream = FrameStream(reader, writer)
        heard = asyncio.create_task(stream.hear(lambda _header, _body: None))
        text = frame(b"header")
        for at in range(10):  # each piece ends one frame and begins another
            theirs.send(text[:9] if at == 0 else text[9:] + text[:9])
            await until(lambda: stream._protocol is not None and stream._protocol.has_progress)
            assert not stream.tick()
        heard.cancel()
        await asyncio.wait([heard])

    tell(story)


@pytest.mark.parametrize(("body_bytes", "is_noted"), [(1 << 20, True), (1 << 10, False)])
def test_large_frames_say_how_fast_they_come(
    tell: Callable[[Story], None], body_bytes: int, is_noted: bool
) -> None:
    async def story(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, theirs: socket.socket
    ) -> None:
        sizes: list[int] = []
        rates: list[float] = []
        protocol = FrameProtocol(
            lambda _header, body: sizes.append(len(body)),
            writer.transport.get_protocol(),
            rates.append,
        )
        hearing = asyncio.create_task(take_over(protocol, reader, writer))
        frames = b"".join(frame_of(b"head", bytes(body_bytes))) * 2
        await asyncio.to_thread(theirs.sendall, frames)
        await until(lambda: sizes == [body_bytes] * 2)
        assert bool(rates) is is_noted
        assert all(rate > 0 for rate in rates)
        hearing.cancel()

    tell(story)
