"""Sums through torch's process groups: gloo stands for NCCL, which needs GPUs."""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from node.engine.parallel import nccl_allreduce
from node.engine.parallel.allreduce import sum_in_order
from node.engine.parallel.nccl_allreduce import CollectiveReducer, gpu_of, open_collective
from node.worker import local_group
from swarm.errors import PeerLost

CPU = torch.device("cpu")
Opened = list[CollectiveReducer]
PATIENCE_SECONDS = 120.0  # for a process to start or end on a busy machine
PATIENCE = timedelta(seconds=PATIENCE_SECONDS)


@pytest.fixture
def together(tmp_path: Path) -> Callable[[int], Opened]:
    """Open a group of threads."""

    def build(ranks: int) -> Opened:
        with ThreadPoolExecutor(ranks) as pool:
            futures = [
                pool.submit(open_collective, tmp_path / "meeting", rank, ranks, CPU)
                for rank in range(ranks)
            ]
            found = [future.result(20) for future in futures]
        assert all(found)
        return [each for each in found if each]

    return build


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_rank_gets_the_same_bits(
    ranks: int, dtype: torch.dtype, together: Callable[[int], Opened]
) -> None:
    reducers = together(ranks)
    for shape in ((1, 7, 33), (1, 1, 64), (300_000,)):
        parts = [torch.randn(shape).to(dtype) for _ in range(ranks)]
        with ThreadPoolExecutor(ranks) as pool:
            pairs = zip(reducers, parts, strict=True)
            sums = list(pool.map(lambda pair: pair[0].all_reduce(pair[1]), pairs))
        assert all(torch.equal(each, sum_in_order(parts)) for each in sums)


def _leave(meeting: Path, is_ready: Event) -> None:
    nccl_allreduce.DEADLINE = PATIENCE  # of this process only
    is_ready.set()
    reducer = open_collective(meeting, 1, 2, CPU)
    assert reducer is not None
    reducer.all_reduce(torch.ones(3))


def test_a_rank_whose_process_ended_is_lost_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slowly it starts; that it has ended shows at once, not at a deadline."""
    monkeypatch.setattr(nccl_allreduce, "DEADLINE", PATIENCE)
    meeting = tmp_path / "meeting"
    spawn = multiprocessing.get_context("spawn")
    is_ready = spawn.Event()
    other = spawn.Process(target=_leave, args=(meeting, is_ready))
    other.start()
    assert is_ready.wait(PATIENCE_SECONDS)
    reducer = open_collective(meeting, 0, 2, CPU)
    assert reducer is not None
    assert float(reducer.all_reduce(torch.ones(3))[0]) == 2
    other.join(PATIENCE_SECONDS)
    assert other.exitcode == 0
    asked = time.monotonic()
    with pytest.raises(PeerLost, match="is lost"):
        reducer.all_reduce(torch.ones(3))
    assert time.monotonic() - asked < PATIENCE_SECONDS / 2
    with pytest.raises(PeerLost, match="new one"):
        reducer.all_reduce(torch.ones(3))


def test_a_rank_that_nobody_meets_gets_nothing_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nccl_allreduce, "DEADLINE", timedelta(seconds=0.5))
    start = time.monotonic()
    assert open_collective(tmp_path / "meeting", 0, 2, CPU) is None
    assert time.monotonic() - start < 5


def test_a_cpu_has_no_place_in_a_group_of_gpus() -> None:
    assert gpu_of(CPU) == ""


def test_the_meeting_place_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    folder = local_group.own_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert local_group.own_folder() == folder
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="ours alone"):
        local_group.own_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="ours alone"):
        local_group.own_folder()
