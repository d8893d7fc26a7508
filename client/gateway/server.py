"""serve: a uvicorn server that bounds what strangers' connections may hold, and ends politely."""

import asyncio
import logging
import signal
import socket
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from starlette.types import ASGIApp
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from client.gateway.http.api_error import busy, openai_body
from client.gateway.http.json_response import dump
from swarm.errors import BadInput

HEAD_SECONDS = 10.0  # for a request's head to arrive
SLOW_SECONDS = 60.0  # that an answer may wait for a reader who reads nothing
KEEP_ALIVE_SECONDS = 30
GRACE_SECONDS = 5  # for answers under way, when the server is told to end
MOST_CONNECTIONS = 1024
LONGEST_HEAD = 32 << 10  # bytes
BACKLOG = 128
FULL = dump(openai_body(busy("This gateway has too many connections.")))
FULL_HEAD = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nx-should-retry: true\r\n"
    b"content-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n" % len(FULL)
)

logger = logging.getLogger(__name__)


class BoundedProtocol(H11Protocol):
    """A connection that ends if its head does not come, or if its answer is not read."""

    def __init__(self, *given: Any, head_seconds: float, slow_seconds: float, **named: Any) -> None:
        super().__init__(*given, **named)
        self._head_seconds, self._slow_seconds = head_seconds, slow_seconds
        self._head_timer: TimerHandle | None = None
        self._slow_timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Wait for a head from now on; a connection too many is told so, and closed."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.write(FULL_HEAD + FULL)
            transport.close()
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        """Read on; between two requests the next head has its own deadline."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            _cancel(self._head_timer)
            self._head_timer = None
        elif self.cycle is None or self.cycle.response_complete:
            self._await_head()

    def pause_writing(self) -> None:
        """The reader is slow: wait for it, but not for ever."""
        super().pause_writing()
        _cancel(self._slow_timer)
        self._slow_timer = self.loop.call_later(self._slow_seconds, self._give_up)

    def resume_writing(self) -> None:
        """The reader reads again."""
        super().resume_writing()
        _cancel(self._slow_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        _cancel(self._head_timer)
        super().connection_lost(exc)
        _cancel(self._slow_timer)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._head_seconds, self.transport.abort)

    def _give_up(self) -> None:
        logger.info("a client reads nothing of its answer: the connection is closed")
        self.transport.abort()


class QuietServer(Server):
    """A server that leaves signals to whoever runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def make_server(
    app: ASGIApp, *, head_seconds: float = HEAD_SECONDS, slow_seconds: float = SLOW_SECONDS
) -> QuietServer:
    """A server, not yet started."""
    protocol = partial(BoundedProtocol, head_seconds=head_seconds, slow_seconds=slow_seconds)
    config = Config(
        app,
        http=cast("type[asyncio.Protocol]", protocol),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=LONGEST_HEAD,
        backlog=BACKLOG,
    )
    return QuietServer(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises BadInput where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        why = error.strerror or str(error)
        raise BadInput(
            f"The gateway cannot listen on {host} port {port}: {why}.",
            "Choose others with --host and --port.",
        ) from error
    made.setblocking(False)
    return made


async def serve(app: ASGIApp, sock: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; a second one ends answers that are under way at once."""
    server, loop = make_server(app), asyncio.get_running_loop()

    def end() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    loop.call_soon(ready)
    await server.serve(sockets=[sock])


def _cancel(timer: TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
