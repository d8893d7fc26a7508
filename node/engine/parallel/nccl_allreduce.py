"""Sums between GPUs of one machine through torch's collectives: NCCL, or gloo without GPUs.

Every rank gathers all partials and adds them up in rank order, so that all hold the same bits.
NCCL itself gives up on a stalled rank: past the deadline it ends the process and the shard with it.
"""

from datetime import timedelta
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import distributed

from node.engine.parallel.allreduce import sum_in_order
from swarm.errors import PeerLost

DEADLINE = timedelta(seconds=10)
LOOPBACK = "127.0.0.1"


class Work(Protocol):
    """An operation under way."""

    def wait(self) -> bool:
        """Wait until its results may be used; raises RuntimeError."""
        ...


class Group(Protocol):
    """What we use of a process group of torch."""

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor]) -> Work:
        """Start to bring the inputs of all ranks to every rank."""
        ...


class CollectiveReducer:
    """One rank of a process group of torch; owned by one thread."""

    def __init__(self, ranks: int, group: Group) -> None:
        self._ranks, self._group = ranks, group
        self._lost: RuntimeError | None = None

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """Return the sum in rank order; raises PeerLost, and is dead from then on."""
        if self._lost is not None:
            raise PeerLost(f"The group is gone: {self._lost}", "Build a new one.")
        mine = partial.detach().contiguous()
        parts = [torch.empty_like(mine) for _ in range(self._ranks)]
        try:
            self._group.allgather([parts], [mine]).wait()
        except RuntimeError as error:
            self._lost = error
            raise PeerLost(f"A rank of the stage is lost: {error}") from error
        return sum_in_order(parts)


def open_collective(
    meeting: Path, rank: int, ranks: int, device: torch.device
) -> CollectiveReducer | None:
    """Join the ranks that meet in the file `meeting` and try a sum; None if that fails."""
    one = torch.ones(1, device=device)
    try:
        reducer = CollectiveReducer(ranks, _group_of(meeting, rank, ranks, device))
        return reducer if float(reducer.all_reduce(one)) == ranks else None
    except (RuntimeError, PeerLost):
        return None


def gpu_of(device: torch.device) -> str:
    """The name that no other GPU of a machine has, or "" where there is no NCCL for it."""
    if device.type != "cuda" or not distributed.is_nccl_available():
        return ""
    return str(torch.cuda.get_device_properties(device).uuid)


def _group_of(meeting: Path, rank: int, ranks: int, device: torch.device) -> Group:
    store = distributed.FileStore(str(meeting), ranks)  # type: ignore[attr-defined]
    store.set_timeout(DEADLINE)
    if device.type == "cuda":
        chosen = distributed.ProcessGroupNCCL.Options()
        chosen._timeout = DEADLINE
        return cast("Group", distributed.ProcessGroupNCCL(store, rank, ranks, chosen))
    options = distributed.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [distributed.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
    options._timeout = DEADLINE
    return cast("Group", distributed.ProcessGroupGloo(store, rank, ranks, options))
