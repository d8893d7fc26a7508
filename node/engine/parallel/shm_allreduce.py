"""Sum of partial results between ranks of one machine: shared memory, and signals on sockets."""

import mmap
import os
import select
import time
from collections.abc import Mapping
from socket import socket

import torch

from node.engine.parallel.allreduce import HEAD, sum_in_order
from swarm.errors import EngineError, PeerLost

PIECE_BYTES = 256 * 1024  # larger tensors pass piece by piece, so that they stay in the cache
MEMORY_BYTES = 2 * PIECE_BYTES  # a rank writes one half while the others still read the other
SPIN_SECONDS = 1e-3  # a rank that computes as much is there sooner: waking up takes longer
VIEWS_KEPT = 64


class SharedReducer:
    """One rank of a group on one machine; owned by one thread.

    A rank writes its partial into memory of its own and signals every other rank: the number of the
    operation and its bytes, over a Unix socket. The kernel orders the signal after the write on
    every processor. A half is written again two operations later: by then every rank has signalled
    the operation between them, so it has read the half.
    """

    def __init__(
        self,
        rank: int,
        peers: Mapping[int, socket],
        memories: Mapping[int, mmap.mmap],  # of every rank, the own one included
        *,
        deadline_seconds: float = 10.0,
    ) -> None:
        self._rank = rank
        self._peers = dict(sorted(peers.items()))
        self._polls = {rank: _poll_of(peer) for rank, peer in self._peers.items()}
        self._memories = [
            torch.frombuffer(memories[each], dtype=torch.uint8) for each in sorted(memories)
        ]
        self._deadline_seconds = deadline_seconds
        self._operation = 0
        self._lost: PeerLost | None = None
        self._views: dict[tuple[int, torch.dtype, int], list[torch.Tensor]] = {}

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """Return the sum in rank order; raises PeerLost naming the rank, EngineError if unlike."""
        if self._lost is not None:
            raise PeerLost(f"The group is gone: {self._lost.cause}", "Build a new one.")
        ends_at = time.monotonic() + self._deadline_seconds
        for peer in self._peers.values():
            peer.settimeout(0.0)
        mine = partial.detach().cpu().contiguous()
        total = torch.empty_like(mine)
        count = PIECE_BYTES // mine.element_size()
        flat, sums = mine.view(-1), total.view(-1)
        for at in range(0, max(1, len(flat)), count):
            here = slice(at, at + count)
            sum_in_order(self._exchange(flat[here], ends_at), sums[here])
        return total.to(partial.device)

    def _exchange(self, mine: torch.Tensor, ends_at: float) -> list[torch.Tensor]:
        """Show `mine` to all and return every rank's, in rank order."""
        parts = self._parts(mine)
        parts[self._rank].copy_(mine)
        head = HEAD.pack(self._operation, mine.numel() * mine.element_size())
        self._operation = (self._operation + 1) % 2**32
        for rank, peer in self._peers.items():
            try:
                peer.send(head)
            except OSError as error:
                raise self._lose(rank, error) from error
        for rank in self._peers:
            if self._receive_head(rank, ends_at) != head:
                self._lose(rank, "it runs another step")
                raise EngineError(f"Rank {rank} runs another step than rank {self._rank}.")
        return parts

    def _parts(self, like: torch.Tensor) -> list[torch.Tensor]:
        half, count = self._operation % 2, like.numel()
        key = (half, like.dtype, count)
        if key not in self._views:
            if len(self._views) >= VIEWS_KEPT:
                self._views.clear()
            here = slice(half * PIECE_BYTES, half * PIECE_BYTES + count * like.element_size())
            self._views[key] = [memory[here].view(like.dtype) for memory in self._memories]
        return self._views[key]

    def _receive_head(self, rank: int, ends_at: float) -> bytes:
        """The next signal of `rank`; spins a little, then sleeps until it comes."""
        spins_until = time.monotonic() + SPIN_SECONDS
        while True:
            try:
                received = self._peers[rank].recv(HEAD.size)
            except BlockingIOError:
                self._wait(rank, spins_until, ends_at)
                continue
            except OSError as error:
                raise self._lose(rank, error) from error
            if not received:
                raise self._lose(rank, "its connection ended")
            return received

    def _wait(self, rank: int, spins_until: float, ends_at: float) -> None:
        now = time.monotonic()
        if now > ends_at:
            raise self._lose(rank, "it is too slow")
        if now < spins_until:
            os.sched_yield()
        else:
            self._polls[rank].poll((ends_at - now) * 1e3 + 1)

    def _lose(self, rank: int, why: object) -> PeerLost:
        self._lost = PeerLost(f"Rank {rank} of the stage is lost: {why}.", peer=str(rank))
        return self._lost


def _poll_of(peer: socket) -> select.poll:
    poll = select.poll()
    poll.register(peer, select.POLLIN)
    return poll
