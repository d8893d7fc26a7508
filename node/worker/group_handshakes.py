"""Handshakes of a group: dialed and accepted all at once, under one deadline.

Nobody is waited for alone: a stranger who connects and says nothing holds one of few places, which
the next one takes from him, and a member's other addresses are tried while the first is silent.
"""

import errno
import logging
import os
import selectors
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from node.worker.messages import Rank
from swarm.errors import Deadline, PeerLost

DIAL_SECONDS = 15.0  # for a TCP connection to one address: its first packet is sent four times
STAGGER_SECONDS = 1.0  # before the next address of a rank is tried beside the last one
HANDSHAKE_SECONDS = 5.0  # for a guest; whom we dial may still be busy, and has until the deadline
RETRY_SECONDS = 0.2  # before an address that ended a handshake midway is tried again
RETRIES = 10  # of one rank
STRANGERS_CAP = 16  # handshakes with guests from addresses at which no member is known
LOOK_SECONDS = 0.05
TAKEN = b"\1"  # the acceptor's word: of a rank's connections it is this one that counts
MIDWAY = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
UNDER_WAY = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}  # lost after 11 s

logger = logging.getLogger(__name__)


class Attempt:
    """One connection on its way to be a member's; `advance` goes as far as it can."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self.host = host
        self.socket = plain
        self.is_connected = False
        self.since = time.monotonic()
        self._context = context
        self._steps: Iterator[int] = iter(())
        plain.setblocking(False)

    @classmethod
    def dial(cls, host: str, port: int, context: ssl.SSLContext) -> "Attempt":
        """Begin a connection; raises OSError."""
        self = cls(socket.socket(), context, host)
        self._steps = self._dialed()
        error = self.socket.connect_ex((host, port))
        if error not in UNDER_WAY:
            self.socket.close()
            raise OSError(error, os.strerror(error))
        return self

    @classmethod
    def accept(cls, plain: socket.socket, context: ssl.SSLContext, host: str) -> "Attempt":
        """Begin a handshake with a guest."""
        self = cls(plain, context, host)
        self._steps = self._accepted()
        return self

    def advance(self) -> int | None:
        """Return the event to wait for, or None when all is done; raises OSError."""
        return next(self._steps, None)

    def taken(self) -> ssl.SSLSocket:
        """The socket, after its last step."""
        assert isinstance(self.socket, ssl.SSLSocket)
        return self.socket

    def close(self) -> None:
        """Give up."""
        self.socket.close()

    def _dialed(self) -> Iterator[int]:
        yield selectors.EVENT_WRITE
        if error := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))
        self.is_connected = True
        yield from self._shake(is_server=False)
        while True:
            try:
                word = self.taken().recv(len(TAKEN))
            except ssl.SSLWantReadError:
                yield selectors.EVENT_READ
                continue
            if word != TAKEN:
                raise ConnectionError("it ended the connection")
            return

    def _accepted(self) -> Iterator[int]:
        self.is_connected = True
        yield selectors.EVENT_READ
        yield from self._shake(is_server=True)

    def _shake(self, *, is_server: bool) -> Iterator[int]:
        plain = without_delay(self.socket)
        self.socket = tls = self._context.wrap_socket(
            plain, server_side=is_server, do_handshake_on_connect=False
        )
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                yield selectors.EVENT_READ
            except ssl.SSLWantWriteError:
                yield selectors.EVENT_WRITE
            else:
                return


@dataclass(slots=True)
class Dial:
    """The way to one rank: addresses still to try, attempts on their way, and what went wrong."""

    number: int
    rank: Rank
    context: ssl.SSLContext
    hosts: deque[str]
    next_at: float = 0.0
    retries: int = RETRIES
    running: list[Attempt] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)  # the last one by host

    def is_due(self, now: float) -> bool:
        """Whether to try the next address now."""
        return bool(self.hosts) and (now >= self.next_at or not self.running)

    def note(self, attempt: Attempt, error: OSError, now: float) -> None:
        """Take an attempt off that failed; what ended midway may have lost its place."""
        self.running.remove(attempt)
        self.failures[attempt.host] = str(error)
        if attempt.is_connected and isinstance(error, MIDWAY) and self.retries:
            self.retries -= 1
            self.hosts.append(attempt.host)
            self.next_at = now + RETRY_SECONDS

    @property
    def is_hopeless(self) -> bool:
        """Whether every address has failed."""
        return not self.running and not self.hosts

    def loss(self) -> PeerLost:
        """What to say when the rank cannot be had."""
        port = self.rank.port
        tried = "; ".join(f"{host}:{port}: {why}" for host, why in self.failures.items())
        waiting = [f"{each.host}:{port}: no answer" for each in self.running]
        words = "; ".join(filter(None, (tried, *waiting))) or "it gave no address"
        return PeerLost(
            f"Rank {self.number} of the group cannot be reached ({words}).",
            "Its node must listen where this machine can dial it; see --listen and --announce.",
        )


class Meeting:
    """A group on its way together: lower ranks are dialed, higher ones accepted."""

    def __init__(
        self,
        listener: socket.socket,
        ranks: Sequence[Rank],
        own: int,
        context_of: Callable[[int, Sequence[Rank]], ssl.SSLContext],
    ) -> None:
        self._listener = listener
        self._ranks = ranks
        self._context = context_of(ssl.PROTOCOL_TLS_SERVER, ranks)
        self._dials = {
            lower: Dial(
                number=lower,
                rank=ranks[lower],
                context=context_of(ssl.PROTOCOL_TLS_CLIENT, [ranks[lower]]),
                hosts=deque(dict.fromkeys(ranks[lower].hosts)),
            )
            for lower in range(own)
        }
        self._awaited = set(range(own + 1, len(ranks)))
        self._known = {host for rank in ranks for host in rank.hosts}
        self._guests: list[Attempt] = []
        self._most_alike = 2 * len(ranks) + 2  # guests of one address
        self._refused: Counter[str] = Counter()
        self._sockets: dict[int, ssl.SSLSocket] = {}
        self._selector = selectors.DefaultSelector()

    def hold(self, deadline: float) -> Mapping[int, ssl.SSLSocket]:
        """Return a socket for every other rank; raises PeerLost and Deadline, and closes all."""
        is_whole = False
        try:
            if self._awaited:
                self._listener.setblocking(False)
                self._selector.register(self._listener, selectors.EVENT_READ)
            while self._dials or self._awaited:
                self._turn(deadline)
            is_whole = True
            return self._sockets
        finally:
            self._end(keep=is_whole)

    def _turn(self, deadline: float) -> None:
        now = time.monotonic()
        for dial in list(self._dials.values()):
            self._look_after(dial, now)
        for guest in [g for g in self._guests if now - g.since > HANDSHAKE_SECONDS]:
            self._dismiss(guest, "it took too long")
        if now >= deadline:
            raise self._lateness()
        for key, _ in self._selector.select(min(LOOK_SECONDS, deadline - now)):
            if key.fileobj is self._listener:
                self._receive()
            elif self._selector.get_map().get(key.fd) is key:  # not dismissed in this turn
                self._advance(key.data)

    def _end(self, *, keep: bool) -> None:
        running = [each for dial in self._dials.values() for each in dial.running]
        for attempt in (*running, *self._guests):
            attempt.close()
        for each in () if keep else self._sockets.values():
            each.close()
        self._selector.close()
        if self._refused:
            logger.warning("refused connections to the group: %s", dict(self._refused))

    def _lateness(self) -> PeerLost | Deadline:
        for dial in self._dials.values():
            return dial.loss()
        missing = ", ".join(map(str, sorted(self._awaited)))
        return Deadline(f"Rank {missing} of the group did not connect in time.")

    # ------------------------------------------------------------------ dialing

    def _look_after(self, dial: Dial, now: float) -> None:
        for attempt in list(dial.running):
            if not attempt.is_connected and now - attempt.since > DIAL_SECONDS:
                self._fail(attempt, dial, TimeoutError("no answer"))
        if dial.is_due(now) and dial.number in self._dials:
            self._dial(dial, now)
        if dial.is_hopeless:
            raise dial.loss()

    def _dial(self, dial: Dial, now: float) -> None:
        host = dial.hosts.popleft()
        dial.next_at = now + STAGGER_SECONDS
        try:
            attempt = Attempt.dial(host, dial.rank.port, dial.context)
        except OSError as error:
            dial.failures[host] = str(error)
            return
        dial.running.append(attempt)
        self._advance((attempt, dial))

    # ------------------------------------------------------------------ accepting

    def _receive(self) -> None:
        try:
            plain, address = self._listener.accept()
        except OSError:  # gone again, or no file left for it: the deadline ends this
            return
        guest = Attempt.accept(plain, self._context, str(address[0]))
        self._make_room(guest.host)
        self._guests.append(guest)
        self._advance((guest, None))

    def _make_room(self, host: str) -> None:
        """The oldest makes way: a member needs its place for a moment only."""
        alike = [guest for guest in self._guests if guest.host == host]
        strangers = [guest for guest in self._guests if guest.host not in self._known]
        if len(alike) >= self._most_alike:
            self._dismiss(alike[0], "too many of one address")
        elif host not in self._known and len(strangers) >= STRANGERS_CAP:
            self._dismiss(strangers[0], "too many strangers")

    def _dismiss(self, guest: Attempt, why: str) -> None:
        self._guests.remove(guest)
        self._refused[why] += 1
        self._forget(guest)
        guest.close()

    # ------------------------------------------------------------------ one step of one attempt

    def _advance(self, one: tuple[Attempt, Dial | None]) -> None:
        attempt, dial = one
        self._forget(attempt)
        try:
            event = attempt.advance()
        except OSError as error:
            self._fail(attempt, dial, error)
            return
        if event is not None:
            self._selector.register(attempt.socket.fileno(), event, one)
        elif dial is not None:
            self._reached(attempt, dial)
        else:
            self._admit(attempt)

    def _forget(self, attempt: Attempt) -> None:
        number = attempt.socket.fileno()
        if number >= 0 and number in self._selector.get_map():
            self._selector.unregister(number)

    def _fail(self, attempt: Attempt, dial: Dial | None, error: OSError) -> None:
        if dial is None:
            self._dismiss(attempt, str(error))
            return
        self._forget(attempt)
        attempt.close()
        dial.note(attempt, error, time.monotonic())

    def _reached(self, attempt: Attempt, dial: Dial) -> None:
        dial.running.remove(attempt)
        shown = attempt.taken().getpeercert(binary_form=True)
        if shown != dial.rank.certificate:
            attempt.close()
            dial.failures[attempt.host] = "another certificate"
            return
        logger.info("rank %d answers at %s:%d", dial.number, attempt.host, dial.rank.port)
        for late in dial.running:
            self._forget(late)
            late.close()
        del self._dials[dial.number]
        self._sockets[dial.number] = attempt.taken()

    def _admit(self, guest: Attempt) -> None:
        """Take the first connection of a member that is awaited; nobody else's."""
        shown = guest.taken().getpeercert(binary_form=True)
        numbers = [n for n in self._awaited if self._ranks[n].certificate == shown]
        try:
            if not numbers:
                raise ConnectionError("nobody who is awaited")
            guest.taken().sendall(TAKEN)
        except OSError as error:
            self._dismiss(guest, str(error))
            return
        self._guests.remove(guest)
        self._awaited.remove(numbers[0])
        self._sockets[numbers[0]] = guest.taken()


def without_delay(plain: socket.socket) -> socket.socket:
    """Have small messages sent at once, and a silent end noticed."""
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        if hasattr(socket, option):  # not every system has all of them
            plain.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return plain
