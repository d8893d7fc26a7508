"""LinkProbe: the exchange by which two peers measure the link between them, both at once.

Who asks opens a stream of bytes and says what machine it is on; the other side accepts, or says
when to come again: while either side generates nobody measures, and one measures at a time. Then
single bytes go to and fro, for the round trip. Then each side sends to the other one, which counts
what comes (`arrivals.py`), grants as much as it wants to have on its way, and says when it has
enough. So both know both figures as receivers, and the link never holds more than it needs.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import msgpack

from node.network.machine_lock import MachineLock
from swarm.errors import Deadline, PeerLost, PeerRefused, RemoteProtocolError
from swarm.p2p.arrivals import Arrivals
from swarm.p2p.channel import StreamChannel
from swarm.p2p.frame_stream import STREAM_ERRORS, frame_of, read_small_frame
from swarm.p2p.rate_limit import Budget

ECHOES, LEAST_ECHOES = 12, 4
ECHOES_SECONDS = 0.5
SLICE = bytes(16 * 1024)
END = b"\1"  # after the last slice: slices have zeros only
TRANSFER_CAP = 384 * len(SLICE)  # bytes one way
TRANSFER_SECONDS = 1.5
LEAST_BYTES = 1_000_000  # for an early end, and
LEAST_SECONDS, LEAST_ROUND_TRIPS = 0.25, 14.0  # its time
TOLERANCE = 0.1  # by which the rate may still change then
AHEAD_BYTES = 128 * 1024  # that may be on their way before anything is known, and later
AHEAD_ROUND_TRIPS, AHEAD_SECONDS = 4.0, 0.2  # of the rate so far, whichever is longer, and
AHEAD_LEAST_BYTES = 64 * 1024
READ_BYTES = 64 * 1024
NUMBER_BYTES = 8
HELLO_CAP = 256  # bytes
OPEN_SECONDS, EXCHANGE_SECONDS = 5.0, 15.0
BUSY_SECONDS = 1.0  # after which who was refused may come again
PEER_BYTES_PER_SECOND, PEER_BURST_BYTES = 64 * 1024, 4 * TRANSFER_CAP
ALL_BYTES_PER_SECOND, ALL_BURST_BYTES = 10 * PEER_BYTES_PER_SECOND, 64 * 2**20

T = TypeVar("T")
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
IsBusy = Callable[[], bool]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinkMeasurement:
    """What one exchange found: of the bytes that came in here."""

    round_trip_seconds: float
    bytes_per_second: float


class LinkProbe:
    """Measures links, one at a time on a machine, never while `is_generating`."""

    def __init__(
        self,
        channel: StreamChannel,
        machine: str,
        is_generating: IsBusy,
        note: Callable[[str, LinkMeasurement], None],
        lock: MachineLock,
    ) -> None:
        self._channel = channel
        self._machine = machine
        self._is_generating = is_generating
        self._note = note
        self._lock = lock
        self._is_measuring = False
        self._of_one = Budget(PEER_BYTES_PER_SECOND, PEER_BURST_BYTES)
        self._of_all = Budget(ALL_BYTES_PER_SECOND, ALL_BURST_BYTES)
        channel.answer_streams(self._answer)

    async def measure(self, peer: str) -> LinkMeasurement:
        """Measure the link to a peer.

        Raises PeerRefused (with a time if it is worth trying again), PeerLost, Deadline,
        RemoteProtocolError.
        """
        with self._turn() as is_free:
            if not is_free:
                raise _not_now(peer)
            reader, writer = await self._channel.open_stream(peer, timeout_seconds=OPEN_SECONDS)
            try:
                return await _in_time(peer, self._ask(peer, (reader, writer)))
            finally:
                writer.close()

    async def _ask(self, peer: str, stream: Stream) -> LinkMeasurement:
        reader, writer = stream
        writer.writelines(frame_of(msgpack.packb([self._machine])))
        is_accepted, retry_after = _read_reply(await _read_hello(reader))
        if not is_accepted:
            raise _not_now(peer, retry_after)
        round_trip = await _ask_echoes(reader, writer)
        rate = await receive(stream, round_trip, self._is_generating)
        writer.write(END)  # the other side may begin to receive
        await send(stream, self._is_generating)
        return LinkMeasurement(round_trip, rate)

    async def _answer(
        self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await _in_time(peer, self._answer_in_turn(peer, (reader, writer)))
        except (PeerLost, PeerRefused, Deadline, RemoteProtocolError) as error:
            logger.info("the link to %s was not measured: %s", peer, error)

    async def _answer_in_turn(self, peer: str, stream: Stream) -> None:
        reader, writer = stream
        machine = _read_machine(await _read_hello(reader))
        with self._turn(locks=machine != self._machine) as is_free:
            is_accepted = is_free and self._can_afford(peer)
            writer.writelines(frame_of(msgpack.packb([is_accepted, BUSY_SECONDS])))
            if not is_accepted:
                return
            round_trip = await _answer_echoes(reader, writer)
            await send(stream, self._is_generating)
            await reader.readexactly(len(END))
            rate = await receive(stream, round_trip, self._is_generating)
            self._note(peer, LinkMeasurement(round_trip, rate))

    @contextmanager
    def _turn(self, *, locks: bool = True) -> Iterator[bool]:
        """Whether we may measure until the end of the block.

        Who answers a peer on its own machine leaves the lock to it.
        """
        if self._is_measuring or self._is_generating():
            yield False
            return
        self._is_measuring = True
        try:
            if not locks:
                yield True
                return
            with self._lock.held() as is_held:
                yield is_held
        finally:
            self._is_measuring = False

    def _can_afford(self, peer: str) -> bool:
        cost = TRANSFER_CAP
        return self._of_one.takes(peer, cost) and self._of_all.takes("all", cost)


async def receive(stream: Stream, round_trip: float, is_busy: IsBusy) -> float:
    """Have the other side send, and return the rate at which its bytes come.

    Raises PeerRefused if we become busy, RemoteProtocolError if it sends more than it may.
    """
    reader, writer = stream
    arrivals, grants = Arrivals(), Grants(writer, round_trip)
    while chunk := await reader.read(READ_BYTES):
        if is_busy():
            raise _not_now("")
        arrivals.add(len(chunk), time.perf_counter())
        if arrivals.bytes > TRANSFER_CAP + READ_BYTES:
            raise RemoteProtocolError("It sent more than it was granted.")
        if chunk.endswith(END):
            return _rate_of(arrivals)
        grants.renew(arrivals)
    raise EOFError("the stream ended within a measurement")


class Grants:
    """How far the other side may send: as far ahead as keeps the link full, by what is known."""

    def __init__(self, writer: asyncio.StreamWriter, round_trip: float) -> None:
        self._writer = writer
        self._round_trip = round_trip
        self._ahead = self._limit = AHEAD_BYTES
        writer.write(_number(self._limit))

    def renew(self, arrivals: Arrivals) -> None:
        """When half of it has come: grant more, or nothing more once it is enough."""
        due = min(self._limit - self._ahead // 2, TRANSFER_CAP)
        if not self._limit or arrivals.bytes < due:
            return
        if _is_enough(arrivals, self._round_trip):
            self._limit = 0
        else:
            seconds = max(AHEAD_ROUND_TRIPS * self._round_trip, AHEAD_SECONDS)
            self._ahead = AHEAD_LEAST_BYTES + int(seconds * (arrivals.rate() or 0.0))
            self._limit = max(self._limit, arrivals.bytes + self._ahead)
        self._writer.write(_number(self._limit))


def _is_enough(arrivals: Arrivals, round_trip: float) -> bool:
    if arrivals.bytes >= TRANSFER_CAP or arrivals.seconds >= TRANSFER_SECONDS:
        return True
    least = max(LEAST_SECONDS, LEAST_ROUND_TRIPS * round_trip)
    has_run = arrivals.bytes >= LEAST_BYTES and arrivals.seconds >= least
    return has_run and arrivals.is_settled(TOLERANCE)


def _rate_of(arrivals: Arrivals) -> float:
    rate = arrivals.rate()
    if rate is None:
        raise RemoteProtocolError("It sent too little to measure anything.")
    return rate


async def send(stream: Stream, is_busy: IsBusy) -> None:
    """Send what the other side grants until it has enough; raises PeerRefused if we are busy."""
    reader, writer = stream
    sent = 0
    while granted := await _read_number(reader):
        while sent + len(SLICE) <= min(granted, TRANSFER_CAP):
            if is_busy():
                raise _not_now("")
            writer.write(SLICE)
            sent += len(SLICE)
            await writer.drain()
    writer.write(END)


async def _ask_echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    """The least round trip of some single bytes; the last one says so."""
    trips: list[float] = []
    began = time.perf_counter()
    while True:
        sent = time.perf_counter()
        late = sent - began > ECHOES_SECONDS and len(trips) >= LEAST_ECHOES
        is_last = late or len(trips) >= ECHOES
        writer.write(END if is_last else b"\0")
        await reader.readexactly(1)
        trips.append(time.perf_counter() - sent)
        if is_last:
            return min(trips)


async def _answer_echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    """Send every byte back until the last one; returns the least time from one to the next."""
    trips: list[float] = []
    before = 0.0
    while len(trips) <= ECHOES + 1:
        byte = await reader.readexactly(1)
        now = time.perf_counter()
        writer.write(byte)
        if before:
            trips.append(now - before)
        before = now
        if byte == END and trips:
            return min(trips)
    raise RemoteProtocolError("It asks for too many echoes.")


def _read_machine(data: bytes) -> str:
    match _unpacked(data):
        case [str(machine), *_]:
            return machine
    raise RemoteProtocolError("A request to measure a link names no machine.")


def _read_reply(data: bytes) -> tuple[bool, float]:
    match _unpacked(data):
        case [bool(is_accepted), float(retry_after), *_]:
            return is_accepted, max(0.0, retry_after)
    raise RemoteProtocolError("An answer to a request to measure a link is not understood.")


def _unpacked(data: bytes) -> object:
    try:
        return msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise RemoteProtocolError("A header is not msgpack.") from error


async def _read_hello(reader: asyncio.StreamReader) -> bytes:
    header, _ = await read_small_frame(reader, HELLO_CAP, 0)
    return header


def _number(value: int) -> bytes:
    return value.to_bytes(NUMBER_BYTES, "big")


async def _read_number(reader: asyncio.StreamReader) -> int:
    return int.from_bytes(await reader.readexactly(NUMBER_BYTES), "big")


def _not_now(peer: str, retry_after: float = BUSY_SECONDS) -> PeerRefused:
    cause = "Somebody measures or generates now."
    return PeerRefused(cause, peer=peer, retry_after_seconds=max(retry_after, BUSY_SECONDS))


async def _in_time(peer: str, work: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(EXCHANGE_SECONDS):
            return await work
    except TimeoutError as error:
        raise Deadline("The link was not measured in time.", peer=peer) from error
    except STREAM_ERRORS as error:
        raise PeerLost("The stream ended within a measurement.", peer=peer) from error
