"""All ranks get the same bits, large tensors do not block, and a lost rank is named."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from node.engine.parallel.allreduce import LocalReducer, Reducer, SocketReducer, sum_in_order
from swarm.errors import EngineError, PeerLost

Mesh = Callable[..., list[SocketReducer]]


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    """Reducers of a full mesh of socket pairs."""
    opened: list[socket.socket] = []

    def build(ranks: int, *, deadline_seconds: float = 5.0) -> list[SocketReducer]:
        peers: list[dict[int, socket.socket]] = [{} for _ in range(ranks)]
        for low in range(ranks):
            for high in range(low + 1, ranks):
                peers[low][high], peers[high][low] = pair = socket.socketpair()
                opened.extend(pair)
        return [SocketReducer(r, p, deadline_seconds=deadline_seconds) for r, p in enumerate(peers)]

    yield build
    for each in opened:
        each.close()


def reduce_all(reducers: list[Reducer], parts: list[torch.Tensor]) -> list[torch.Tensor]:
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(
            pool.map(lambda pair: pair[0].all_reduce(pair[1]), zip(reducers, parts, strict=True))
        )


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_rank_gets_the_same_bits(ranks: int, dtype: torch.dtype, mesh: Mesh) -> None:
    parts = [torch.randn(1, 7, 33).to(dtype) for _ in range(ranks)]
    for reducers in (mesh(ranks), LocalReducer.group(ranks)):
        for _ in range(3):
            sums = reduce_all(list(reducers), parts)
            assert all(torch.equal(each, sum_in_order(parts)) for each in sums)


def test_tensors_larger_than_every_buffer_pass(mesh: Mesh) -> None:
    parts = [torch.randn(1 << 20) for _ in range(3)]
    assert all(torch.equal(s, sum_in_order(parts)) for s in reduce_all(list(mesh(3)), parts))


def test_ended_connection_names_the_rank_for_good(mesh: Mesh) -> None:
    reducers = mesh(3)
    reducers[0]._peers.pop(1)
    for peer in reducers[2]._peers.values():
        peer.shutdown(socket.SHUT_RDWR)
    for _ in range(2):
        with pytest.raises(PeerLost, match="Rank 2") as caught:
            reducers[0].all_reduce(torch.ones(4))
    assert "new one" in str(caught.value)


def test_silent_rank_is_lost_at_the_deadline(mesh: Mesh) -> None:
    first, _ = mesh(2, deadline_seconds=0.05)
    with pytest.raises(PeerLost, match="Rank 1"):
        first.all_reduce(torch.ones(4))


def test_trickling_rank_is_lost_at_the_deadline(mesh: Mesh) -> None:
    first, second = mesh(2, deadline_seconds=0.1)
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.02):
            try:
                second._peers[0].send(b"\0")
            except OSError:
                return

    thread = threading.Thread(target=trickle)
    thread.start()
    with pytest.raises(PeerLost, match="Rank 1"):
        first.all_reduce(torch.ones(1024))
    stop.set()
    thread.join()


def test_ranks_at_different_steps_notice(mesh: Mesh) -> None:
    first, second = mesh(2)
    with ThreadPoolExecutor(2) as pool:
        pool.submit(second.all_reduce, torch.ones(5))
        with pytest.raises(EngineError, match="another step"):
            first.all_reduce(torch.ones(4))


def test_missing_thread_breaks_the_local_group() -> None:
    first, _ = LocalReducer.group(2, deadline_seconds=0.05)
    with pytest.raises(PeerLost):
        first.all_reduce(torch.ones(2))


def test_tls_sockets_carry_large_tensors(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    if subprocess.run(
        [*command.split(), "-subj", "/CN=swarm", "-keyout", key, "-out", certificate],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("openssl is not installed")
    server, client = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )
    server.load_cert_chain(certificate, key)
    client.load_verify_locations(certificate)
    client.check_hostname = False
    left, right = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.wrap_socket, left, server_side=True)
        secure = [client.wrap_socket(right), waiting.result()]
    reducers = [SocketReducer(0, {1: secure[0]}), SocketReducer(1, {0: secure[1]})]
    parts = [torch.randn(300_000) for _ in range(2)]
    for _ in range(3):
        assert torch.equal(reduce_all(list(reducers), parts)[1], parts[0] + parts[1])
    for each in secure:
        each.close()
