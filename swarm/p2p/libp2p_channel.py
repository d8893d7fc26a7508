"""LibP2PChannel: frames over persistent raw libp2p streams, one per ordered pair of peers.

The side that sends opens the stream; the other side answers PING on its way back. Whoever hears
nothing for three beats, or sees the stream end, counts the peer as lost and drops both directions.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from swarm.errors import (
    Deadline,
    LocalProtocolError,
    PeerError,
    PeerLost,
    RemoteProtocolError,
)
from swarm.p2p.admission import PASS, Admission
from swarm.p2p.channel import (
    ANSWER_CAP,
    OnLost,
    OnMessage,
    OnRate,
    RawHandler,
    RawStream,
    RpcHandler,
)
from swarm.p2p.frame_protocol import LARGE_BYTES
from swarm.p2p.frame_stream import STREAM_ERRORS, FrameStream
from swarm.p2p.hello import hello_of, problem_of_hello, read_hello
from swarm.p2p.link_kinds import is_direct
from swarm.p2p.p2p_daemon import P2PDaemon
from swarm.p2p.peer_connection import PINGS, PeerConnection, PendingDisconnects
from swarm.p2p.raw_streams import RawStreams
from swarm.p2p.rpc import Rpc
from swarm.p2p.stream_moves import FOLLOW_SECONDS, StreamMoves
from swarm.p2p.unproved_streams import UnprovedStreams
from swarm.task_set import TaskSet
from swarm.trust.identity import public_key_of
from swarm.trust.swarm_key import SwarmKey
from swarm.wire.codec import Codec, session_of
from swarm.wire.messages import Fail, Message, Ping, Pong
from swarm.wire.rules import FailCode

PING_SECONDS = 2.0
HELLO_SECONDS = 5.0  # for the proof at the start of a stream
CLOSE_SECONDS = 1.0
STREAM_CAP = 512  # incoming streams of proved peers: each is an open file
UNPROVED_CAP, UNPROVED_OF_A_PEER = 64, 2
QUIET_SECONDS = 60.0  # without data, after which its sessions are over, and a stream may give way
BAD_FRAMES_CAP = 32  # of one stream, before it is closed
HEARD = Pong(0)  # "your data arrives", when nobody pinged

logger = logging.getLogger(__name__)


class LibP2PChannel:
    """A Channel over one p2pd; closing it leaves the daemon running."""

    def __init__(self, daemon: P2PDaemon, swarm: str, key: str, ping_seconds: float) -> None:
        self.peer = daemon.peer
        self._door = daemon.door
        self._daemon = daemon
        self._key = SwarmKey(swarm, key)
        self._frames = f"/swarm/1/{self._key.name}/frames"
        self._followers = f"{self._frames}/next"
        self._rpc = Rpc(daemon, f"/swarm/1/{self._key.name}/questions")
        self._raw = RawStreams(daemon, f"/swarm/1/{self._key.name}/bytes")
        self._ping_seconds = ping_seconds
        self._codec = Codec()
        self._connections: dict[str, PeerConnection] = {}
        self._incoming: dict[str, FrameStream] = {}
        self._tasks = TaskSet()
        self._disconnects = PendingDisconnects(
            lambda peer: self._tasks.create("a disconnect", daemon.disconnect(peer))
        )
        self._admission = Admission(daemon.door, self._ask_at_first)
        self._moves = StreamMoves(self._follower_to, self._begin, self._tasks)
        self._followed: set[str] = set()  # peers of whom a stream waits for the end of another one
        self._unproved = UnprovedStreams(UNPROVED_CAP, UNPROVED_OF_A_PEER)
        self._listening = asyncio.Event()
        self._on_message: OnMessage = lambda peer, message: None
        self._on_lost: OnLost = lambda peer, reason: None
        self._closed = False
        self._on_rate: OnRate = lambda peer, bytes_per_second: None
        self._on_share: OnRate = lambda peer, bytes_per_second: None
        self.before_stream: Callable[[str], Awaitable[None]] = _at_once
        """What a new stream waits for; it bounds its time itself."""

    @classmethod
    async def open(
        cls, daemon: P2PDaemon, swarm: str, key: str = "", *, ping_seconds: float = PING_SECONDS
    ) -> "LibP2PChannel":
        """Serve the streams of a swarm on a running p2pd; holds tasks until closed."""
        self = cls(daemon, swarm, key, ping_seconds)
        if self._door.members:
            self.answer(PASS, self._admission.answer_pass)
        await self.reopen()
        self._tasks.create("the channel's beat", self._beat())
        return self

    async def reopen(self) -> None:
        """Serve on what is now the daemon's p2pd; streams over an earlier one end by themselves."""
        serve = self._daemon.p2p.add_binary_stream_handler
        async with asyncio.timeout(HELLO_SECONDS):
            await serve(self._frames, partial(self._serve_frames, self._welcome))
            await serve(self._followers, partial(self._serve_frames, self._follow))
            await serve(self._rpc.protocol, partial(self._serve_one, self._rpc))
            await serve(self._raw.protocol, partial(self._serve_one, self._raw))

    def listen(self, on_message: OnMessage, on_lost: OnLost) -> None:
        """Deliver messages and losses from now on; incoming streams wait until then."""
        self._on_message, self._on_lost = on_message, on_lost
        self._listening.set()

    async def send(self, peer: str, message: Message, *, timeout_seconds: float = 10.0) -> None:
        """Queue a message in order; raises PeerLost, PeerRefused, Deadline."""
        buffers = self._codec.encode(message)
        if peer == self.peer:
            asyncio.get_running_loop().call_soon(self._on_message, self.peer, message)
            return
        with self._connection_to(peer) as connection:
            try:
                async with asyncio.timeout(timeout_seconds), connection.lock:
                    stream = connection.stream or await self._open_stream_to(peer, connection)
                    await stream.write(buffers)
            except TimeoutError as error:
                raise Deadline(
                    f"Peer {peer} did not accept a message within {timeout_seconds:.3g} s.",
                    "It is overloaded or out of reach: try again, or allow more time.",
                    peer=peer,
                ) from error
            except STREAM_ERRORS as error:
                raise PeerLost(f"The stream to peer {peer} ended.", peer=peer) from error

    def send_now(self, peer: str, message: Message) -> bool:
        """Queue a message if the connection is open and free; False means that `send` has to."""
        connection = self._connections.get(peer)
        return connection is not None and connection.write_now(self._codec.encode(message))

    async def confirm(self, peer: str, *, timeout_seconds: float) -> None:
        """Return once the peer answers a ping behind all that was sent; raises as `send` does.

        Whom a fresh stream brings no answer is dialled afresh by the next call.
        """
        if peer == self.peer:
            return
        try:
            async with asyncio.timeout(timeout_seconds):
                asked = await self._ask_pong(peer)
                try:
                    await asyncio.wait([asked])
                finally:
                    asked.cancel()
        except TimeoutError as error:
            self._doubt(peer)
            raise Deadline(f"Peer {peer} did not confirm in time.", peer=peer) from error
        except STREAM_ERRORS as error:
            raise PeerLost(f"The stream to peer {peer} ended.", peer=peer) from error
        if asked.cancelled():
            raise PeerLost(f"The stream to peer {peer} ended.", peer=peer)

    async def _ask_pong(self, peer: str) -> "asyncio.Future[None]":
        with self._connection_to(peer) as connection:
            async with connection.lock:
                stream = connection.stream or await self._open_stream_to(peer, connection)
                return await connection.ask_pong(stream)

    def _doubt(self, peer: str) -> None:
        """Give up a stream over which nothing has ever come back, or that does not even open."""
        connection = self._connections.get(peer)
        stream = connection.stream if connection else None
        if connection is not None and stream is not None and not connection.has_heard:
            self._give_up(peer, stream)
        elif stream is None and peer not in self._incoming:
            self._disconnects.begin(peer)

    def answer(self, name: str, handler: RpcHandler) -> None:
        """Answer the questions called `name`."""
        self._rpc.answer(name, handler)

    async def ask(
        self, peer: str, name: str, payload: bytes, *, timeout_seconds: float = 5.0
    ) -> bytes:
        """Ask a peer; raises PeerLost, PeerRefused, Deadline, RemoteProtocolError."""
        if len(payload) > ANSWER_CAP:
            raise LocalProtocolError(f"A question of {len(payload)} bytes is above the cap.")
        try:
            async with asyncio.timeout(timeout_seconds):
                if peer == self.peer:
                    return await self._rpc.ask_myself(peer, name, payload)
                await self._require_admitted(_known_form(peer))
                asked_at = time.perf_counter()
                answer = await self._rpc.ask(peer, name, payload, self._hello_to(peer))
                if len(answer) >= LARGE_BYTES:
                    self._on_share(peer, len(answer) / (time.perf_counter() - asked_at))
                return answer
        except TimeoutError as error:
            raise Deadline(f"Peer {peer} did not answer {name!r} in time.", peer=peer) from error

    def listen_for_rates(self, on_rate: OnRate, on_share: OnRate) -> None:
        """Tell how fast large frames of peers come in, and large answers, which share the way."""
        self._on_rate, self._on_share = on_rate, on_share

    def answer_streams(self, handler: RawHandler) -> None:
        """Hand streams that peers open to `handler`."""
        self._raw.answer(handler)

    async def open_stream(self, peer: str, *, timeout_seconds: float = 5.0) -> RawStream:
        """Open a stream of plain bytes; raises PeerLost, PeerRefused, Deadline."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._require_admitted(_known_form(peer))
                await self.before_stream(peer)
                return await self._raw.open(peer, self._hello_to(peer))
        except TimeoutError as error:
            raise Deadline(f"Peer {peer} did not open a stream in time.", peer=peer) from error

    def leave_relay(self, peer: str) -> None:
        """Let frames to a peer go on over a direct connection, if they go through a relay now."""
        if connection := self._connections.get(peer):
            self._moves.start(peer, connection)

    def is_quiet(self, peer: str) -> bool:
        """Whether frames have come and gone so long ago that every session has ended."""
        beats = [c.quiet_beats for p, c in self._connections.items() if p == peer and c.stream]
        beats += [stream.quiet_beats for p, stream in self._incoming.items() if p == peer]
        return all(each * self._ping_seconds >= QUIET_SECONDS for each in beats)

    def round_trip_seconds(self, peer: str) -> float | None:
        """The smoothed round trip of idle pings, or None before the first."""
        connection = self._connections.get(peer)
        return connection.round_trip_seconds if connection else None

    async def close(self) -> None:
        """Flush and end all streams, report none of them; returns within seconds."""
        self._closed = True
        outgoing = [
            connection.stream for connection in self._connections.values() if connection.stream
        ]
        streams = (*outgoing, *self._incoming.values())
        self._connections.clear()
        await asyncio.gather(*(stream.close(CLOSE_SECONDS) for stream in streams))
        await self._tasks.close()

    @contextmanager
    def _connection_to(self, peer: str) -> Iterator[PeerConnection]:
        connection = self._connections.setdefault(_known_form(peer), PeerConnection())
        with connection.in_use():
            yield connection

    async def _open_stream_to(self, peer: str, connection: PeerConnection) -> FrameStream:
        await self._require_admitted(peer)
        await self.before_stream(peer)
        if self._closed:
            raise PeerLost("The channel is closed.", peer=peer)
        stream = await self._stream_over(peer, self._frames)
        self._begin(peer, connection, stream)
        return stream

    async def _stream_over(self, peer: str, protocol: str) -> FrameStream:
        (reader, writer), address = await self._daemon.open_known_stream(peer, protocol)
        writer.write(self._hello_to(peer))
        return FrameStream(reader, writer, is_relayed=not is_direct([address]))

    async def _follower_to(self, peer: str) -> FrameStream:
        await self._require_admitted(peer)
        return await self._stream_over(peer, self._followers)

    async def _ask_at_first(self, peer: str, name: str, payload: bytes) -> bytes:
        """Ask what is settled before anything else is asked."""
        return await self._rpc.ask(peer, name, payload, self._hello_to(peer))

    def _begin(self, peer: str, connection: PeerConnection, stream: FrameStream) -> None:
        connection.open(stream)
        self._tasks.create("hearing pongs", self._hear_pongs(peer, connection, stream))

    def _hello_to(self, peer: str) -> bytes:
        return hello_of(self._proof(self.peer, peer), self._door)

    async def _require_admitted(self, peer: str) -> None:
        """Return if we may speak with a peer; raises PeerRefused, PeerLost."""
        if not self._door.problem_with(peer):
            await self._disconnects.finish(peer)
        await self._admission.require(peer)

    async def _hear_pongs(self, peer: str, connection: PeerConnection, stream: FrameStream) -> None:
        reason = "its stream ended"
        try:
            await stream.hear(connection.hear)
        except RemoteProtocolError as error:
            reason = str(error)
        except STREAM_ERRORS:
            pass
        finally:
            stream.abort()
            self._lose(peer, stream, reason)

    async def _serve_frames(
        self,
        welcome: Callable[[str, asyncio.StreamReader, FrameStream], Awaitable[None]],
        info: StreamInfo,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        peer = str(info.peer_id)
        stream = FrameStream(reader, writer)
        reason = "its stream ended"
        try:
            await welcome(peer, reader, stream)
            await stream.hear(partial(self._receive, peer, stream), partial(self._note_rate, peer))
        except RemoteProtocolError as error:
            reason = str(error)
        except (TimeoutError, *STREAM_ERRORS):
            pass
        finally:
            stream.abort()
            self._lose(peer, stream, reason)

    async def _require_hello(
        self, peer: str, reader: asyncio.StreamReader, stream: FrameStream
    ) -> None:
        if self._closed:
            raise RemoteProtocolError("The channel is closed.")
        if problem := self._door.problem_at_first(peer):
            raise RemoteProtocolError(problem)
        with self._unproved.place(peer, stream.abort):
            async with asyncio.timeout(HELLO_SECONDS):
                said = await read_hello(reader, self._door)
        if problem := problem_of_hello(said, self._proof(peer, self.peer), self._door, peer):
            raise RemoteProtocolError(problem)

    async def _follow(self, peer: str, reader: asyncio.StreamReader, stream: FrameStream) -> None:
        """Let a stream go on where another one of the peer ends, without a loss in between."""
        await self._require_hello(peer, reader, stream)
        before = self._incoming.get(peer)
        if before is None or peer in self._followed:
            raise RemoteProtocolError("It follows no stream, or one that is followed already.")
        self._followed.add(peer)
        try:
            async with asyncio.timeout(FOLLOW_SECONDS):
                await before.wait_for(await stream.read_frames_before())
        finally:
            self._followed.discard(peer)
        if self._incoming.get(peer) is not before:
            raise RemoteProtocolError("It follows a stream that was given up.")
        self._incoming[peer] = stream
        self._tasks.create("ending a stream", before.close(CLOSE_SECONDS))

    async def _welcome(self, peer: str, reader: asyncio.StreamReader, stream: FrameStream) -> None:
        await self._require_hello(peer, reader, stream)
        if peer not in self._incoming and len(self._incoming) >= STREAM_CAP:
            self._make_room()
        before = self._incoming.get(peer)
        if before is not None:  # it gave up the old one, and with it the frames in flight
            self._lose(peer, before, "it opened a new stream")
        self._incoming[peer] = stream
        await self._listening.wait()

    def _make_room(self) -> None:
        """End the stream that has been without data for longest; raises RemoteProtocolError."""
        peer, stream = max(self._incoming.items(), key=lambda item: item[1].quiet_beats)
        if stream.quiet_beats * self._ping_seconds < QUIET_SECONDS:
            raise RemoteProtocolError("There is no room for another stream.")
        self._lose(peer, stream, "others need its place")

    def _receive(
        self, peer: str, stream: FrameStream, header: memoryview, body: memoryview
    ) -> None:
        try:
            message = self._codec.decode(header, body)
            if isinstance(message, Ping):
                stream.write_now(PINGS.encode(Pong(message.nonce)))
            elif not isinstance(message, Pong):
                stream.has_data = True
                self._on_message(peer, message)
        except RemoteProtocolError as error:
            self._refuse(peer, stream, header, error)

    def _refuse(
        self, peer: str, stream: FrameStream, header: memoryview, error: RemoteProtocolError
    ) -> None:
        stream.bad_frames += 1
        if stream.bad_frames > BAD_FRAMES_CAP:
            raise RemoteProtocolError("It sent too many bad frames.") from error
        logger.info("a bad frame from %s: %s", peer, error)
        named = session_of(header)
        if named is not None:
            fail = Fail(*named, FailCode.BAD_FRAME, str(error)[:500])
            self._tasks.create("sending a FAIL", self._send_fail(peer, fail))

    async def _send_fail(self, peer: str, fail: Fail) -> None:
        try:
            await self.send(peer, fail)
        except PeerError as error:
            logger.debug("cannot tell %s of its bad frame: %s", peer, error)

    def _note_rate(self, peer: str, bytes_per_second: float) -> None:
        """Tell whoever listens now, who may be another than when the stream began."""
        self._on_rate(peer, bytes_per_second)

    async def _serve_one(
        self,
        server: Rpc | RawStreams,
        info: StreamInfo,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Let what answers questions, or what takes raw streams, serve one of a peer's."""
        if self._closed:
            writer.close()
            return
        peer = str(info.peer_id)
        serving = server.serve(peer, (reader, writer), self._proof(peer, self.peer), self._door)
        await asyncio.wait([self._tasks.create("serving a peer", serving)])

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._ping_seconds)
            if not self._listening.is_set():  # we do not read yet, so silence says nothing
                continue
            self._part_from_refused()
            for peer, connection in list(self._connections.items()):
                if connection.is_idle:
                    del self._connections[peer]
                elif silent := connection.beat():
                    self._give_up(peer, silent)
            for peer, stream in list(self._incoming.items()):
                if stream.tick():
                    self._give_up(peer, stream)
                elif stream.has_data:
                    stream.has_data, stream.quiet_beats = False, 0
                    stream.write_now(PINGS.encode(HEARD))
                else:
                    stream.quiet_beats += 1

    def _part_from_refused(self) -> None:
        """End the streams of peers that the door has let in before, and does not admit any more."""
        outgoing = {p: c.stream for p, c in self._connections.items() if c.stream is not None}
        for peer, stream in [*self._incoming.items(), *outgoing.items()]:
            if problem := self._door.problem_with(peer):
                self._lose(peer, stream, problem)

    def _give_up(self, peer: str, stream: FrameStream) -> None:
        self._disconnects.begin(peer)  # else the next call finds the dead connection
        self._lose(peer, stream, "it has fallen silent")

    def _lose(self, peer: str, stream: FrameStream, reason: str) -> None:
        connection = self._connections.get(peer)
        streams = {self._incoming.get(peer), connection.stream if connection else None} - {None}
        if stream not in streams or self._closed:
            return
        self._incoming.pop(peer, None)
        self._admission.forget(peer)
        if connection is not None:
            connection.drop_stream()
        for lost in streams:
            if lost is not None:
                lost.abort()
        logger.info("lost peer %s: %s", peer, reason)
        self._on_lost(peer, reason)

    def _proof(self, sender: str, receiver: str) -> bytes:
        text = f"{self._frames}\0{sender}\0{receiver}"
        proof = self._key.proof("stream", sender, receiver)
        return proof or hmac.digest(b"", text.encode(), hashlib.sha256)  # open: anybody can


async def _at_once(_peer: str) -> None:
    """Wait for nothing."""


def _known_form(peer: str) -> str:
    try:
        public_key_of(peer)
    except ValueError as error:
        raise PeerLost(f"{peer[:64]!r} is not a peer id.", peer=peer[:64]) from error
    return peer
