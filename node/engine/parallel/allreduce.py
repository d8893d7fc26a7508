"""Sum of the partial results of a tensor-parallel group, bit-identical on every rank."""

import struct
import threading
import time
from collections.abc import Mapping
from socket import socket
from typing import Protocol

import torch

from swarm.errors import EngineError, PeerLost

CHUNK_BYTES = 64 * 1024  # two unread chunks fit in any kernel's socket buffers: nobody blocks
HEAD = struct.Struct("!IQ")  # number of the operation, bytes


class Reducer(Protocol):
    """Sums a tensor over the ranks of a stage."""

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """Return the sum of every rank's `partial`; raises PeerLost, and is dead from then on."""
        ...


class LocalReducer:
    """One rank of a group of threads in one process."""

    def __init__(self, rank: int, slots: list[torch.Tensor | None], gate: threading.Barrier):
        self._rank, self._slots, self._gate = rank, slots, gate

    @classmethod
    def group(cls, ranks: int, *, deadline_seconds: float = 10.0) -> list["LocalReducer"]:
        """Return the reducers of `ranks` threads."""
        slots: list[torch.Tensor | None] = [None] * ranks
        gate = threading.Barrier(ranks, timeout=deadline_seconds)
        return [cls(rank, slots, gate) for rank in range(ranks)]

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """Return the sum in rank order; raises PeerLost if a thread does not come."""
        self._slots[self._rank] = partial
        try:
            self._gate.wait()
            total = sum_in_order([slot for slot in self._slots if slot is not None])
            self._gate.wait()
        except threading.BrokenBarrierError as error:
            raise PeerLost("A rank of the local group did not come.") from error
        return total


class SocketReducer:
    """One rank of a group of connected blocking sockets, plain or TLS; owned by one thread."""

    def __init__(
        self, rank: int, peers: Mapping[int, socket], *, deadline_seconds: float = 10.0
    ) -> None:
        self._rank = rank
        self._peers = dict(sorted(peers.items()))
        self._deadline_seconds = deadline_seconds
        self._operation = 0
        self._lost: PeerLost | None = None
        for peer in self._peers.values():
            peer.settimeout(deadline_seconds)

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """Return the sum in rank order; raises PeerLost naming the rank, EngineError if unlike."""
        if self._lost is not None:
            raise PeerLost(f"The group is gone: {self._lost.cause}", "Build a new one.")
        mine = partial.detach().cpu().contiguous()
        parts = self._exchange(mine)
        parts[self._rank] = mine
        return sum_in_order([parts[rank] for rank in sorted(parts)]).to(partial.device)

    def _exchange(self, mine: torch.Tensor) -> dict[int, torch.Tensor]:
        """Send `mine` to all and return theirs: every rank alternates, a chunk out, a chunk in."""
        ends_at = time.monotonic() + self._deadline_seconds
        outgoing = _bytes_of(mine)
        parts = {rank: torch.empty_like(mine) for rank in self._peers}
        incoming = {rank: _bytes_of(part) for rank, part in parts.items()}
        head = HEAD.pack(self._operation, len(outgoing))
        self._operation = (self._operation + 1) % 2**32
        for at in range(0, max(len(outgoing), 1), CHUNK_BYTES):
            chunk = outgoing[at : at + CHUNK_BYTES]
            self._send(head + chunk if at == 0 else chunk)
            for rank, data in incoming.items():
                if at == 0:
                    self._check_head(rank, head, ends_at)
                self._receive(rank, data[at : at + CHUNK_BYTES], ends_at)
        return parts

    def _send(self, data: bytes | memoryview) -> None:
        for rank, peer in self._peers.items():
            try:
                peer.sendall(data)
            except OSError as error:
                raise self._lose(rank, error) from error

    def _check_head(self, rank: int, head: bytes, ends_at: float) -> None:
        theirs = bytearray(HEAD.size)
        self._receive(rank, memoryview(theirs), ends_at)
        if theirs != head:
            self._lose(rank, "it runs another step")
            raise EngineError(f"Rank {rank} runs another step than rank {self._rank}.")

    def _receive(self, rank: int, into: memoryview, ends_at: float) -> None:
        while len(into):
            try:
                count = self._peers[rank].recv_into(into)
            except OSError as error:
                raise self._lose(rank, error) from error
            if count == 0:
                raise self._lose(rank, "its connection ended")
            into = into[count:]
            if len(into) and time.monotonic() > ends_at:
                raise self._lose(rank, "it is too slow")

    def _lose(self, rank: int, why: object) -> PeerLost:
        self._lost = PeerLost(f"Rank {rank} of the stage is lost: {why}.", peer=str(rank))
        return self._lost


def sum_in_order(parts: list[torch.Tensor], out: torch.Tensor | None = None) -> torch.Tensor:
    """Return the sum of equal shapes, first to last; half precision is summed in float32."""
    if parts[0].dtype == torch.float32 and len(parts) > 1:
        total = torch.add(parts[0], parts[1], out=out)
        for part in parts[2:]:
            total.add_(part)
        return total
    wide = parts[0].float()
    for part in parts[1:]:
        wide.add_(part)
    total = wide.to(parts[0].dtype)
    return total if out is None else out.copy_(total)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
