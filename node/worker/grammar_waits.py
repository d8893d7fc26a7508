"""GrammarWaits: sessions with a grammar wait until it is compiled, and hold nobody up meanwhile."""

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from node.engine.grammar import GrammarCompiler
from node.engine.thread_priority import lower_own_priority
from node.worker.messages import Release, Reserve
from node.worker.scheduler import Arrived
from swarm.errors import SwarmError
from swarm.wire.sampling_params import Sampling

logger = logging.getLogger(__name__)


class GrammarWaits:
    """Compiles in a thread of its own; `give` gets each order when its grammar is compiled.

    What is wrong with a grammar is said when the session opens: the compiler remembers it.
    """

    def __init__(self, give: Callable[[Arrived], None]) -> None:
        self._give = give
        self._waiting: dict[str, Arrived] = {}  # by session
        self._lock = threading.Lock()  # of what waits, and of giving it: a release must not pass it
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._compiler: GrammarCompiler | None = None
        self._thread: threading.Thread | None = None

    def serve(self, compiler: GrammarCompiler) -> None:
        """Compile for this model from now on."""
        self._compiler = compiler

    def holds(self, arrived: Arrived) -> bool:
        """Whether an order is kept here: one that must wait, or the release of one that does."""
        order = arrived.order
        if isinstance(order, Reserve) and order.sampling.get("grammar"):
            with self._lock:
                self._waiting[order.session] = arrived
            self._put(order.session)
            return True
        if isinstance(order, Release):
            with self._lock:
                return self._waiting.pop(order.session, None) is not None
        return False

    def clear(self) -> None:
        """Forget all that wait: their shard is given up."""
        self._compiler = None
        with self._lock:
            self._waiting.clear()

    def _put(self, session: str) -> None:
        self._queue.put(session)
        if self._thread is None:
            self._thread = threading.Thread(target=self._compile, daemon=True)
            self._thread.start()

    def _compile(self) -> None:
        lower_own_priority()
        while True:
            session = self._queue.get()
            try:
                self._get_ready(session)
            except Exception:  # an island: the others wait for this thread, too
                logger.exception("a grammar cannot be compiled")
            with self._lock:
                if arrived := self._waiting.pop(session, None):
                    self._give(arrived)

    def _get_ready(self, session: str) -> None:
        with self._lock:
            arrived = self._waiting.get(session)
        compiler = self._compiler
        if compiler and arrived and isinstance(arrived.order, Reserve):
            with suppress(SwarmError):  # it is said to whoever asks
                compiler.compile(Sampling.from_map(arrived.order.sampling).grammar)
