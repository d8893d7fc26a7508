"""Ranks of one machine share memory; others, strangers and silent ones do not spoil the group."""

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch

from node.engine.parallel.allreduce import Reducer, SocketReducer, sum_in_order
from node.engine.parallel.nccl_allreduce import CollectiveReducer
from node.engine.parallel.shm_allreduce import MEMORY_BYTES, PIECE_BYTES, SharedReducer
from node.worker import local_group
from node.worker.group_sockets import GroupLink
from swarm.errors import EngineError, PeerLost

Joined = list[tuple[GroupLink, Reducer]]
Join = Callable[..., Joined]


@pytest.fixture
def join() -> Iterator[Join]:
    """Join a group of threads over plain sockets; `far` ranks say that they are elsewhere."""
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:

        def build(ranks: int, far: tuple[int, ...] = ()) -> Joined:
            peers = mesh(ranks)
            for each in [each for sockets in peers for each in sockets.values()]:
                stack.callback(each.close)
            futures = [
                pool.submit(local_group.join_group, sockets, rank, near=rank not in far)
                for rank, sockets in enumerate(peers)
            ]
            found = [future.result(20) for future in futures]
            for link, _ in found:
                for each in link._sockets.values():
                    stack.callback(each.close)
            return found

        yield build


def mesh(ranks: int) -> list[dict[int, socket.socket]]:
    peers: list[dict[int, socket.socket]] = [{} for _ in range(ranks)]
    for low in range(ranks):
        for high in range(low + 1, ranks):
            peers[low][high], peers[high][low] = socket.socketpair()
    return peers


def sums(joined: Joined, parts: list[torch.Tensor]) -> list[torch.Tensor]:
    with ThreadPoolExecutor(len(parts)) as pool:
        futures = [pool.submit(j[1].all_reduce, p) for j, p in zip(joined, parts, strict=True)]
        return [future.result(20) for future in futures]


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_near_ranks_get_the_same_bits_through_memory(
    ranks: int, dtype: torch.dtype, join: Join
) -> None:
    joined = join(ranks)
    assert all(isinstance(reducer, SharedReducer) for _, reducer in joined)
    shapes = [(1, 7, 33), (1, 1, 5), (0,), (PIECE_BYTES // 2 + 3,), (1, 7, 33)]
    for shape in shapes:
        parts = [torch.randn(shape).to(dtype) for _ in range(ranks)]
        expected = sum_in_order(parts)
        found = sums(joined, parts)
        assert all(torch.equal(each, expected) for each in found)
        assert all(each.shape == parts[0].shape for each in found)


def test_a_sum_stays_true_while_later_ones_are_made(join: Join) -> None:
    joined = join(2)
    kept = []
    for number in range(5):
        parts = [torch.full((4,), float(number + rank)) for rank in range(2)]
        kept.append((sums(joined, parts)[0], parts[0] + parts[1]))
    assert all(torch.equal(found, expected) for found, expected in kept)


def test_the_link_and_the_sums_share_their_sockets(join: Join) -> None:
    joined = join(2)
    for number in range(3):
        joined[0][0].broadcast(bytes([number]) * 100_000)
        assert joined[1][0].receive(0, idle=True) == bytes([number]) * 100_000
        sums(joined, [torch.ones(3), torch.ones(3)])


@pytest.mark.parametrize("far", [(0,), (2,), (0, 1, 2)])
def test_one_rank_elsewhere_leaves_all_on_tls(far: tuple[int, ...], join: Join) -> None:
    joined = join(3, far)
    assert all(isinstance(reducer, SocketReducer) for _, reducer in joined)
    parts = [torch.randn(9) for _ in range(3)]
    assert all(torch.equal(each, sum_in_order(parts)) for each in sums(joined, parts))


def test_a_rank_that_only_claims_to_be_here_leaves_all_on_tls(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = local_group.LocalListener.greeting

    def lie(listener: local_group.LocalListener, rank: int) -> bytes:
        greeting = real(listener, rank)
        token = bytes(local_group.TOKEN_BYTES) if listener._own == 0 else greeting[32:48]
        return greeting[:32] + token + greeting[48:]

    monkeypatch.setattr(local_group, "MEET_SECONDS", 0.3)
    monkeypatch.setattr(local_group.LocalListener, "greeting", lie)
    assert all(isinstance(reducer, SocketReducer) for _, reducer in join(3))


@pytest.mark.parametrize("words", [b"\x01" + bytes(16), b"hello", b""])
def test_a_stranger_at_the_door_costs_the_memory_but_not_the_group(
    words: bytes, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, came = local_group.LocalListener.gather, threading.Event()

    def visited(listener: local_group.LocalListener, greetings: dict[int, bytes]) -> object:
        if listener._own:
            came.wait(5)
        else:
            with socket.socket(socket.AF_UNIX) as stranger, suppress(OSError):
                stranger.connect(listener._socket.getsockname())
                stranger.sendall(words)
            came.set()
        return real(listener, greetings)

    monkeypatch.setattr(local_group, "MEET_SECONDS", 0.5)
    monkeypatch.setattr(local_group.LocalListener, "gather", visited)
    joined = join(2)
    assert all(isinstance(reducer, SocketReducer) for _, reducer in joined)
    assert torch.equal(sums(joined, [torch.ones(2), torch.ones(2)])[1], torch.full((2,), 2.0))


def test_a_sandbox_that_refuses_shared_memory_leaves_all_on_tls(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, flags: int) -> int:
        raise PermissionError(f"no {name} with {flags} here")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert all(isinstance(reducer, SocketReducer) for _, reducer in join(3))


def test_memory_that_could_shrink_is_not_mapped() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        memory = os.memfd_create("test")
        os.ftruncate(memory, MEMORY_BYTES)
        socket.send_fds(theirs, [b"\1"], [memory])
        os.close(memory)
        with pytest.raises(ValueError, match="shrink"):
            local_group._received(ours, 1)


def test_ranks_at_different_steps_notice(join: Join) -> None:
    first, second = (reducer for _, reducer in join(2))
    with ThreadPoolExecutor(2) as pool:
        pool.submit(second.all_reduce, torch.ones(5))
        with pytest.raises(EngineError, match="another step"):
            first.all_reduce(torch.ones(4))
    with pytest.raises(PeerLost, match="new one"):
        first.all_reduce(torch.ones(4))


def test_a_closed_link_ends_a_rank_that_waits_for_a_sum(join: Join) -> None:
    joined = join(2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(joined[0][1].all_reduce, torch.ones(4))
        time.sleep(0.05)
        joined[0][0].close()
        with pytest.raises(PeerLost, match="Rank 1"):
            waiting.result(5)


def _follow(sockets: dict[int, socket.socket]) -> None:
    _, reducer = local_group.join_group(sockets, 1)
    with suppress(PeerLost):
        while True:
            reducer.all_reduce(torch.ones(8))


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_stalled_process_is_lost_within_the_deadline(stop: signal.Signals) -> None:
    ours, theirs = mesh(2)
    other = multiprocessing.get_context("spawn").Process(target=_follow, args=(theirs,))
    other.start()
    link, reducer = local_group.join_group(ours, 0)
    assert isinstance(reducer, SharedReducer)
    reducer._deadline_seconds = 0.5
    for _ in range(3):
        assert torch.equal(reducer.all_reduce(torch.ones(8)), torch.full((8,), 2.0))
    assert other.pid is not None
    os.kill(other.pid, stop)
    start = time.monotonic()
    with pytest.raises(PeerLost, match="Rank 1"):  # noqa: PT012 - the first sums may be there yet
        while time.monotonic() < start + 5:
            reducer.all_reduce(torch.ones(8))
    assert time.monotonic() - start < 3
    other.kill()
    other.join()
    for each in (*theirs.values(), *link._sockets.values()):
        each.close()


def test_gpus_of_one_machine_meet_and_use_their_own_collective(
    join: Join, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = iter(["gpu a", "gpu b"])
    monkeypatch.setattr(local_group, "gpu_of", lambda device: next(names).replace(" ", "-"))
    monkeypatch.setattr(local_group, "own_folder", lambda: tmp_path)
    joined = join(2)
    assert all(isinstance(reducer, CollectiveReducer) for _, reducer in joined)
    parts = [torch.randn(9) for _ in range(2)]
    assert all(torch.equal(each, sum_in_order(parts)) for each in sums(joined, parts))


@pytest.mark.parametrize("names", [["a", "a"], ["a", ""]], ids=["one GPU", "a GPU and a CPU"])
def test_ranks_without_a_gpu_each_sum_through_memory(
    names: list[str], join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(names)
    monkeypatch.setattr(local_group, "gpu_of", lambda device: next(left))
    assert all(isinstance(reducer, SharedReducer) for _, reducer in join(2))


def test_gpus_that_do_not_meet_sum_through_memory(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Path:
        raise PermissionError("another user was here first")

    names = iter(["a", "b"])
    monkeypatch.setattr(local_group, "gpu_of", lambda device: next(names))
    monkeypatch.setattr(local_group, "own_folder", refuse)
    assert all(isinstance(reducer, SharedReducer) for _, reducer in join(2))
