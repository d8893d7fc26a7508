"""Why nothing listens at an address is said in a word, and within seconds."""

import asyncio
import socket
import time

import pytest

from swarm.p2p.tcp_probe import tcp_problem
from swarm.testing.memory_network import peer_named

ANYBODY = peer_named("anybody")


def test_somebody_who_listens_is_no_problem() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}"
        assert asyncio.run(tcp_problem(address)) == ""
        assert asyncio.run(tcp_problem(f"{address}/p2p/{ANYBODY}")) == ""
        circuit = f"{address}/p2p/{ANYBODY}/p2p-circuit/p2p/{ANYBODY}"
        assert asyncio.run(tcp_problem(circuit)) == ""


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("/ip4/127.0.0.1/tcp/1", "refused"),
        (f"/ip4/127.0.0.1/tcp/1/p2p/{ANYBODY}/p2p-circuit", "refused"),
        ("/dns4/nobody.invalid/tcp/4001", "no such name"),
        ("/ip4/127.0.0.1/tcp/99999", ""),
        ("/ip4/127.0.0.1/udp/1/quic-v1", ""),
        ("nonsense", ""),
    ],
)
def test_the_cause_is_a_word(address: str, problem: str) -> None:
    assert asyncio.run(tcp_problem(address)) == problem


def test_silence_ends() -> None:
    with socket.socket() as full:  # a queue that is full answers nothing, as a lost host does
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.create_connection(full.getsockname())]
        address = f"/ip4/127.0.0.1/tcp/{full.getsockname()[1]}"
        began = time.monotonic()
        assert asyncio.run(tcp_problem(address, seconds=0.3)) == "no answer"
        assert time.monotonic() - began < 2
        waiting[0].close()
