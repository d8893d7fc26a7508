"""Talks plain TCP on a host of the laboratory: answers, or asks and prints the find as JSON."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

ASK_SECONDS = 2.0  # for a connection and for each answer
ECHOES = 20
SETTLE_SECONDS = 1.0  # of a stream: the time of its slow start
BYTE, STREAM, WHO = b"e", b"s", b"w"  # what an asker begins with
PIECE = bytes(65536)


def answer(port: str) -> None:
    """Serve until killed."""
    with socket.create_server(("0.0.0.0", int(port))) as server:
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        while True:
            line, address = server.accept()
            threading.Thread(target=_serve, args=(line, address), daemon=True).start()


def _serve(line: socket.socket, address: tuple[str, int]) -> None:
    with line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while kind := line.recv(1):
            if kind == BYTE:
                line.sendall(BYTE)
            elif kind == WHO:
                line.sendall(json.dumps(address).encode())
            else:
                _swallow(line)


def _swallow(line: socket.socket) -> None:
    """Read until the other side is done; tell the rate once the stream has found its pace."""
    begins = time.monotonic() + SETTLE_SECONDS
    count, began, last = 0, 0.0, 0.0
    while piece := line.recv(len(PIECE)):
        last = time.monotonic()
        if began:
            count += len(piece)
        elif last > begins:
            began = last
    line.sendall(json.dumps(count / max(last - began, 1e-9)).encode())


def echo(address: str, port: str) -> list[float]:
    """Seconds of the fastest of some one-byte echoes; nothing where none came.

    What else a machine does can only make an echo later, so the fastest tells of the wire.
    """
    try:
        with _reach(address, port) as line:
            return [min(_echo(line) for _ in range(ECHOES))]
    except OSError:
        return []


def _echo(line: socket.socket) -> float:
    began = time.perf_counter()
    line.sendall(BYTE)
    if line.recv(1) != BYTE:
        raise ConnectionError("no echo")
    return time.perf_counter() - began


def rate(address: str, port: str, seconds: str = "3") -> list[float]:
    """Bytes per second that arrive, once the stream has found its pace."""
    with _reach(address, port) as line:
        line.settimeout(20)
        line.sendall(STREAM)
        ends = time.monotonic() + float(seconds)
        while time.monotonic() < ends:
            line.sendall(PIECE)
        line.shutdown(socket.SHUT_WR)
        return [float(line.recv(100))]


def seen_from(address: str, port: str, own: str) -> list[str | int]:
    """Address and port which the server sees, of a connection from this port of ours."""
    with _reach(address, port, int(own)) as line:
        line.sendall(WHO)
        seen: list[str | int] = json.loads(line.recv(100))
        return seen


def again(address: str, port: str) -> bool:
    """Echo once, wait for a word on standard input, and echo again on the same connection."""
    with _reach(address, port) as line:
        _echo(line)
        sys.stdout.write("true\n")
        sys.stdout.flush()
        sys.stdin.readline()
        try:
            _echo(line)
        except OSError:
            return False
        return True


def _reach(address: str, port: str, own: int = 0) -> socket.socket:
    line = socket.create_connection((address, int(port)), ASK_SECONDS, ("", own))
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


ASKS: dict[str, Callable[..., object]] = {
    "echo": echo,
    "rate": rate,
    "from": seen_from,
    "again": again,
}

if __name__ == "__main__":
    with suppress(
        OSError
    ):  # before busy tests, where that is allowed: it measures the wire, not them
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    what, *words = sys.argv[1:]
    if what == "answer":
        answer(*words)
    else:
        sys.stdout.write(json.dumps(ASKS[what](*words)) + "\n")
