"""MemoryWorld: a board and channels in memory for tests: cut links, kill peers, slow links down.

Messages pass through the real codec, so what does not travel in reality does not travel here.
"""

import asyncio
import hashlib
import socket
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgpack

from swarm.errors import (
    Deadline,
    LocalProtocolError,
    PeerLost,
    PeerRefused,
    RemoteProtocolError,
    SwarmError,
)
from swarm.p2p.channel import (
    ANSWER_CAP,
    OnLost,
    OnMessage,
    OnRate,
    RawHandler,
    RawStream,
    RpcHandler,
)
from swarm.records import RECORD_CAP, Record, record_of_map, record_to_list
from swarm.testing.clock import Clock, LoopClock
from swarm.trust.identity import peer_of_public_key
from swarm.wire.codec import Codec, Decoder
from swarm.wire.messages import Fail, Message
from swarm.wire.rules import FailCode

R = TypeVar("R", bound=Record)
SILENCE_SECONDS = 6.0  # after which a silent link counts as lost, like three missed pings
SIGNED_BYTES = 96  # what MAC and signature add to a record
CODEC = Codec()


def peer_named(name: str) -> str:
    """A well-formed peer id for a test; equal names give equal ids."""
    return peer_of_public_key(hashlib.sha256(name.encode()).digest())


@dataclass
class Link:
    """What lies between two peers, in both directions."""

    delay_seconds: float = 0.0
    is_cut: bool = False
    is_silent: bool = False
    swallowed: set[str] = field(default_factory=set)  # of whom nothing arrives
    in_use: bool = False  # something passed, so that a loss is noticed
    losses: int = 0  # what was under way before a loss never arrives
    last_due: dict[str, float] = field(default_factory=dict)  # by sender: keeps the order
    lost: set["asyncio.Future[None]"] = field(default_factory=set)  # of questions under way


@dataclass
class MemoryWorld:
    """What the peers of a test share; every change of a link is seen at once by both sides."""

    clock: Clock = field(default_factory=LoopClock)
    records: dict[tuple[type[Record], str], tuple[Record, float]] = field(default_factory=dict)
    channels: dict[str, "MemoryChannel"] = field(default_factory=dict)
    links: dict[frozenset[str], Link] = field(default_factory=dict)

    def channel(self, peer: str) -> "MemoryChannel":
        """A new channel for a peer; a second one for the same peer is the peer restarted."""
        self.channels[peer] = MemoryChannel(self, peer)
        return self.channels[peer]

    def board(self, peer: str) -> "MemoryBoard":
        """The board as this peer sees it."""
        return MemoryBoard(self, peer)

    def link(self, one: str, other: str) -> Link:
        """The link between two peers; its delay may be set at any time."""
        return self.links.setdefault(frozenset((one, other)), Link())

    def cut(self, one: str, other: str) -> None:
        """End the link: both sides lose their streams at once and cannot open new ones."""
        link = self.link(one, other)
        link.is_cut = True
        self._drop(one, other, "its stream ended")

    def silence(self, one: str, other: str) -> None:
        """Swallow everything on the link; both sides notice after SILENCE_SECONDS."""
        link = self.link(one, other)
        link.is_silent = True
        self._notice_later(link, one, other)

    def swallow(self, sender: str, receiver: str) -> None:
        """Swallow what one of two peers sends; both notice by their pings."""
        link = self.link(sender, receiver)
        link.swallowed.add(sender)
        self._notice_later(link, sender, receiver)

    def _notice_later(self, link: Link, one: str, other: str) -> None:
        def notice() -> None:
            if link.is_silent or link.swallowed:
                self._drop(one, other, "it has fallen silent")

        self.clock.call_later(SILENCE_SECONDS, notice)

    def heal(self, one: str, other: str) -> None:
        """Make the link work again; what was lost stays lost."""
        link = self.link(one, other)
        link.is_cut = link.is_silent = False
        link.swallowed.clear()

    def kill(self, peer: str) -> None:
        """End a peer without a word: its channel is gone, its records live out their time."""
        channel = self.channels.pop(peer, None)
        if channel is None:
            return
        for other in list(self.channels):
            self._drop(peer, other, "its stream ended")

    def carry(self, sender: str, receiver: str, deliver: Callable[[], None]) -> None:
        """Call `deliver` after the link's delay, in order, unless the link is lost meanwhile."""
        link = self.link(sender, receiver)
        link.in_use = True
        losses, now = link.losses, self.clock.now()
        due = max(now + link.delay_seconds, link.last_due.get(sender, 0.0))
        link.last_due[sender] = due

        def arrive() -> None:
            is_swallowed = link.is_silent or sender in link.swallowed
            if link.losses == losses and not is_swallowed:
                deliver()

        if due > now:
            self.clock.call_later(due - now, arrive)
        else:
            asyncio.get_running_loop().call_soon(arrive)

    def reachable(self, sender: str, receiver: str) -> "MemoryChannel":
        """The receiver's channel; raises PeerLost if it is dead or the link is cut."""
        channel = self.channels.get(receiver)
        if channel is None or self.link(sender, receiver).is_cut or sender not in self.channels:
            raise PeerLost(f"Cannot reach peer {receiver}.", peer=receiver)
        return channel

    def _drop(self, one: str, other: str, reason: str) -> None:
        link = self.link(one, other)
        if not link.in_use:
            return
        link.in_use = False
        link.losses += 1
        for waiting in link.lost:
            waiting.set_result(None)
        link.lost.clear()
        for peer, lost in ((one, other), (other, one)):
            if channel := self.channels.get(peer):
                asyncio.get_running_loop().call_soon(channel.lose, lost, reason)


class MemoryBoard:
    """A Board on a shared dictionary."""

    def __init__(self, world: MemoryWorld, peer: str) -> None:
        self.peer = peer
        self._world = world

    async def publish(self, record: Record, *, ttl_seconds: float | None = None) -> None:
        """Show a record; one that would not travel raises LocalProtocolError."""
        kind = type(record)
        values = record_to_list(record)
        try:
            copy = record_of_map(kind, values)
            size = len(msgpack.packb(values))
        except (ValueError, OverflowError, TypeError) as error:
            raise LocalProtocolError(f"Our {kind.KEY} record is malformed: {error}.") from error
        if size + SIGNED_BYTES > RECORD_CAP:
            raise LocalProtocolError(f"Our {kind.KEY} record has more than {RECORD_CAP} bytes.")
        ttl = kind.TTL_SECONDS if ttl_seconds is None else min(ttl_seconds, kind.TTL_SECONDS)
        before = self._world.records.get((kind, self.peer))
        expiration = max(self._world.clock.now() + ttl, before[1] + 0.001 if before else 0.0)
        self._world.records[kind, self.peer] = copy, expiration

    async def read(self, kind: type[R], *, latest: bool = True) -> dict[str, R]:
        """The live records of a kind by peer."""
        now = self._world.clock.now()
        return {
            peer: record
            for (_, peer), (record, expiration) in self._world.records.items()
            if isinstance(record, kind) and expiration > now
        }

    async def close(self) -> None:
        """Nothing is held open."""


class MemoryChannel:
    """A Channel of one peer in a MemoryWorld."""

    def __init__(self, world: MemoryWorld, peer: str) -> None:
        self.peer = peer
        self._world = world
        self._handlers: dict[str, RpcHandler] = {}
        self._early: list[tuple[str, bytes]] = []  # frames that came before `listen`
        self._listener: tuple[OnMessage, OnLost] | None = None
        self._connections: set[str] = set()  # peers to which a stream of ours is open
        self._raw: RawHandler | None = None
        self.on_rate: OnRate = lambda peer, bytes_per_second: None
        self.on_share: OnRate = self.on_rate
        self._serving: set[asyncio.Task[None]] = set()  # streams of plain bytes

    def listen(self, on_message: OnMessage, on_lost: OnLost) -> None:
        """Deliver messages and losses from now on, and what has come before."""
        self._listener = on_message, on_lost
        early, self._early = self._early, []
        for peer, frame in early:
            asyncio.get_running_loop().call_soon(self.take, peer, frame)

    async def send(self, peer: str, message: Message, *, timeout_seconds: float = 10.0) -> None:
        """Send a message in order; raises PeerLost."""
        frame = b"".join(CODEC.encode(message))
        receiver = self._world.reachable(self.peer, peer)
        self._world.carry(self.peer, peer, lambda: receiver.take(self.peer, frame))
        if peer != self.peer:  # no stream leads to ourselves
            self._connections.add(peer)
        await asyncio.sleep(0)

    def send_now(self, peer: str, message: Message) -> bool:
        """Send a message if an earlier one has opened the way, and it is not lost since."""
        if peer not in self._connections:
            return False
        frame = b"".join(CODEC.encode(message))
        try:
            receiver = self._world.reachable(self.peer, peer)
        except PeerLost:  # `send` says so
            return False
        self._world.carry(self.peer, peer, lambda: receiver.take(self.peer, frame))
        return True

    def answer(self, name: str, handler: RpcHandler) -> None:
        """Answer the questions called `name`."""
        self._handlers[name] = handler

    async def ask(
        self, peer: str, name: str, payload: bytes, *, timeout_seconds: float = 5.0
    ) -> bytes:
        """Ask a peer; raises PeerLost, PeerRefused, Deadline."""
        if len(payload) > ANSWER_CAP:
            raise LocalProtocolError(f"A question of {len(payload)} bytes is above the cap.")
        receiver = self._world.reachable(self.peer, peer)
        return await self._in_time(peer, self._ask(receiver, name, payload), timeout_seconds)

    async def confirm(self, peer: str, *, timeout_seconds: float) -> None:
        """Send something there and back, behind what was sent before; raises PeerLost, Deadline."""
        self._world.reachable(self.peer, peer)
        await self._in_time(peer, self._there_and_back(peer), timeout_seconds)

    async def _there_and_back(self, peer: str) -> bytes:
        await self._travel(self.peer, peer)
        await self._travel(peer, self.peer)
        return b""

    async def _in_time(
        self, peer: str, work: Coroutine[Any, Any, bytes], timeout_seconds: float
    ) -> bytes:
        loop = asyncio.get_running_loop()
        late: asyncio.Future[None] = loop.create_future()
        lost: asyncio.Future[None] = loop.create_future()
        self._world.link(self.peer, peer).lost.add(lost)
        self._world.clock.call_later(timeout_seconds, lambda: _set(late))
        answered = asyncio.create_task(work)
        either: set[asyncio.Future[Any]] = {answered, late, lost}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._world.link(self.peer, peer).lost.discard(lost)
            if not answered.done():
                answered.cancel()
        if answered.done() and not answered.cancelled():
            return answered.result()
        if lost.done():
            raise PeerLost(f"Peer {peer} left without an answer.", peer=peer)
        raise Deadline(f"Peer {peer} did not answer in time.", peer=peer)

    def listen_for_rates(self, on_rate: OnRate, on_share: OnRate) -> None:
        """All comes at once here: there is nothing to tell, but both are kept for tests."""
        self.on_rate, self.on_share = on_rate, on_share

    def leave_relay(self, peer: str) -> None:
        """There are no relays here."""

    def is_quiet(self, peer: str) -> bool:
        """Whether nothing was ever sent to a peer, or it is lost since."""
        return peer not in self._connections

    def answer_streams(self, handler: RawHandler) -> None:
        """Hand streams that peers open to `handler`."""
        self._raw = handler

    async def open_stream(self, peer: str, *, timeout_seconds: float = 5.0) -> RawStream:
        """Open a stream of plain bytes without any delay; raises PeerLost, PeerRefused."""
        receiver = self._world.reachable(self.peer, peer)
        if receiver._raw is None:
            raise PeerRefused(f"Peer {peer} has no streams of bytes.", peer=peer)
        near, far = socket.socketpair()
        stream = await asyncio.open_connection(sock=far)
        serving = asyncio.create_task(_serve_raw(receiver._raw, self.peer, stream))
        receiver._serving.add(serving)
        serving.add_done_callback(receiver._serving.discard)
        return await asyncio.open_connection(sock=near)

    def round_trip_seconds(self, peer: str) -> float | None:
        """Twice the delay of a link in use."""
        link = self._world.link(self.peer, peer)
        return 2 * link.delay_seconds if link.in_use else None

    async def close(self) -> None:
        """Leave; the others see the streams end."""
        self._listener = None
        if self._world.channels.get(self.peer) is self:
            self._world.kill(self.peer)

    def take(self, peer: str, frame: bytes) -> None:
        """Receive a frame: called by the world."""
        if self._listener is None:
            self._early.append((peer, frame))
            return
        for message in Decoder(CODEC).feed(frame):
            try:
                self._listener[0](peer, message)
            except RemoteProtocolError as error:
                self._refuse(peer, message, error)

    def lose(self, peer: str, reason: str) -> None:
        """See a stream end: called by the world."""
        self._connections.discard(peer)
        if self._listener is not None:
            self._listener[1](peer, reason)

    def _refuse(self, peer: str, message: Message, error: RemoteProtocolError) -> None:
        session, epoch = getattr(message, "session", None), getattr(message, "epoch", 0)
        if session is None or isinstance(message, Fail):
            return
        fail = b"".join(CODEC.encode(Fail(session, epoch, FailCode.BAD_FRAME, str(error)[:500])))
        receiver = self._world.channels.get(peer)
        if receiver is not None:
            self._world.carry(self.peer, peer, lambda: receiver.take(self.peer, fail))

    async def _ask(self, receiver: "MemoryChannel", name: str, payload: bytes) -> bytes:
        await self._travel(self.peer, receiver.peer)
        answer = await receiver.answered(self.peer, name, payload)
        await self._travel(receiver.peer, self.peer)
        return answer

    async def answered(self, asker: str, name: str, payload: bytes) -> bytes:
        """Answer a question as it reaches the asker: called by the asker's channel."""
        handler = self._handlers.get(name)
        if handler is None:
            raise PeerRefused(f"unknown: Nobody here answers {name!r}.", peer=self.peer)
        try:
            answer = await handler(asker, payload)
        except SwarmError as error:
            retry = error.retry_after_seconds if isinstance(error, PeerRefused) else 0.0
            cause = f"{type(error).__name__}: {error}"
            raise PeerRefused(cause, peer=self.peer, retry_after_seconds=retry) from error
        if len(answer) > ANSWER_CAP:
            raise PeerRefused("too_large: The answer is too large to send.", peer=self.peer)
        return answer

    def _travel(self, sender: str, receiver: str) -> Awaitable[None]:
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._world.carry(sender, receiver, lambda: _set(arrived))
        return arrived


async def _serve_raw(handler: RawHandler, peer: str, stream: RawStream) -> None:
    reader, writer = stream
    try:
        await handler(peer, reader, writer)
    except (EOFError, OSError, RemoteProtocolError):
        pass
    finally:
        writer.close()


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
