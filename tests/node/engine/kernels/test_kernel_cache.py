"""Compiled kernels are kept for all processes, and never run on arguments of another kind."""

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core import config
from numba.core.caching import FunctionCache, IndexDataCacheFile

from node.engine.kernels.kernel_cache import LOCK, SharedCache, kernel

SECONDS = 30.0
FLOATS, INTEGERS = np.arange(3, dtype=np.float64), np.arange(3, dtype=np.int8)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def doubled(values: Any) -> Any:
    """A small kernel."""
    total = values[0]
    for at in range(len(values)):
        total += values[at] * 2
    return total


def another_process() -> Any:
    """The kernel as a process finds it that has compiled nothing yet."""
    return kernel()(doubled)


def hits(dispatcher: Any) -> int:
    return sum(dispatcher.stats.cache_hits.values())


def test_what_one_process_compiled_the_next_one_loads() -> None:
    first = another_process()
    assert first(FLOATS) == 6.0
    second = another_process()
    assert second(FLOATS) == 6.0
    assert (hits(first), hits(second)) == (0, 1)


def test_code_for_other_arguments_is_not_run() -> None:
    first = another_process()
    first(FLOATS)
    first(INTEGERS)
    one, two = sorted(Path(first._cache.cache_path).glob("*.nbc"))
    swap = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(swap)
    second = another_process()
    assert second(FLOATS) == 6.0
    assert second(INTEGERS) == 6
    assert hits(second) == 0


def test_two_that_save_at_once_do_not_take_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [numba.njit()(doubled) for _ in range(2)]
    for source, values in zip(sources, (FLOATS, INTEGERS), strict=True):
        source(values)
    compiled: list[Any] = [next(iter(source.overloads.values())) for source in sources]
    first_is_in, go_on, second_waits = (threading.Event() for _ in range(3))
    save: Callable[..., None] = IndexDataCacheFile._save_index
    flock = fcntl.flock

    def slow(index: Any, overloads: Any) -> None:
        if not first_is_in.is_set():
            first_is_in.set()
            assert go_on.wait(SECONDS)
        save(index, overloads)

    def watched(lock: int, kind: int) -> None:
        if first_is_in.is_set():
            second_waits.set()
        flock(lock, kind)

    monkeypatch.setattr(IndexDataCacheFile, "_save_index", slow)
    monkeypatch.setattr(fcntl, "flock", watched)
    caches = [another_process()._cache for _ in compiled]
    jobs = [
        threading.Thread(target=cache.save_overload, args=(each.signature.args, each))
        for cache, each in zip(caches, compiled, strict=True)
    ]
    jobs[0].start()
    assert first_is_in.wait(SECONDS)
    jobs[1].start()
    assert second_waits.wait(SECONDS)
    go_on.set()
    for job in jobs:
        job.join(SECONDS)
        assert not job.is_alive()
    assert len(list(Path(caches[0].cache_path).glob("*.nbc"))) == 2
    again = another_process()
    assert again(FLOATS) == 6.0
    assert again(INTEGERS) == 6
    assert hits(again) == 2


def test_a_folder_that_nobody_may_write_costs_the_cache_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = os.open

    def refuse(path: Any, *options: Any) -> int:
        if Path(path).name == LOCK:
            raise PermissionError(13, "Permission denied")
        return real(path, *options)

    monkeypatch.setattr(os, "open", refuse)
    assert another_process()(FLOATS) == 6.0


def test_the_kernels_of_the_engine_are_kept_like_this() -> None:
    from node.engine.kernels import numba_kernels

    found: list[Any] = [
        each
        for each in vars(numba_kernels).values()
        if isinstance(each, numba.core.registry.CPUDispatcher)
    ]
    assert len(found) > 8
    assert all(isinstance(each._cache, SharedCache) for each in found)
    assert issubclass(SharedCache, FunctionCache)
