"""The cache of compiled kernels, which many processes may find empty and fill at once.

numba writes each of its files whole, but not index and code as one: two processes that save kernels
of unlike arguments at a time may give both the same place, and a third one then runs code that was
made for other arguments, over memory that it does not own. So one process saves at a time, and what
is loaded is held against what was asked for.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import sigutils
from numba.core.caching import FunctionCache

logger = logging.getLogger(__name__)

LOCK = "kernels.lock"  # in the folder of the cache


class SharedCache(FunctionCache):
    """numba's cache of one function, for any number of processes."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code for these arguments, or None: then it is compiled."""
        with self._locked(fcntl.LOCK_SH):
            found = super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        if found is not None and not _is_for(sig, found):
            logger.warning("the kernel cache in %s holds the wrong code", self.cache_path)
            return None
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code for these arguments."""
        with self._locked(fcntl.LOCK_EX):
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        try:
            folder = Path(self.cache_path)
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # a folder that nobody may write is not written at once either
            yield
            return
        try:
            fcntl.flock(lock, kind)
            yield
        finally:
            os.close(lock)


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function when it is first called, and keep the code for every later process."""

    def decorate(function: Callable[..., Any]) -> Any:
        compiled = njit(**options)(function)
        compiled._cache = SharedCache(compiled.py_func)  # type: ignore[no-untyped-call]
        return compiled

    return decorate


def _is_for(sig: Any, found: Any) -> bool:
    arguments, _ = sigutils.normalize_signature(sig)  # type: ignore[no-untyped-call]
    return tuple(found.signature.args) == tuple(arguments)
