"""WeightFetch: gets what a worker lacks of its shard's weights, and says how far it is."""

import asyncio
import logging
from collections.abc import Callable

from node.worker.messages import Given, Need
from node.worker.weight_requests import wanted_of
from node.worker.worker_handle import WorkerProcess
from swarm.checkpoint.weight_store import FetchProgress, WeightStore
from swarm.errors import SwarmError
from swarm.task_set import TaskSet

logger = logging.getLogger(__name__)

REASON_CAP = 2000  # characters


class WeightFetch:
    """What one device's worker asks its node for."""

    def __init__(
        self, worker: WorkerProcess, store: WeightStore | None, on_fraction: Callable[[float], None]
    ) -> None:
        self._worker, self._store, self._on_fraction = worker, store, on_fraction
        self._tasks = TaskSet()
        self._latest: asyncio.Task[None] | None = None
        self._watch = FetchProgress()
        self.fetched_bytes = 0  # for the shard that is loading, or was loaded last

    @property
    def is_busy(self) -> bool:
        """Whether bytes are on their way: whoever shows a bar shows one already."""
        return self._latest is not None and not self._latest.done()

    def serve(self, need: Need) -> None:
        """Begin to fetch what the worker needs; it hears when that is done."""
        self.stop()
        loop = asyncio.get_running_loop()

        def show(done: int, total: int) -> None:
            loop.call_soon_threadsafe(self._on_fraction, done / total)

        self._watch = FetchProgress(show)
        self._latest = self._tasks.create("fetching weights", self._fetch(need, self._watch))

    def stop(self) -> None:
        """Nobody wants it any more."""
        self._watch.stop()
        self.fetched_bytes = 0

    async def close(self) -> None:
        """Fetch nothing any more."""
        self.stop()
        await self._tasks.close()

    async def _fetch(self, need: Need, watch: FetchProgress) -> None:
        reason = ""
        if self._store is not None:  # else all that there will ever be is in the folder
            try:
                fetched = await asyncio.to_thread(self._store.ensure, wanted_of(need), watch)
                self.fetched_bytes, reason = fetched, ""
            except (SwarmError, OSError) as error:  # the disk may be full, or forbidden
                logger.warning("weights cannot be fetched: %s", error)
                reason = str(error)[:REASON_CAP]
            except Exception as error:  # an island: the worker waits for an answer
                logger.exception("weights cannot be fetched")
                reason = f"Fetching failed: {error!r}"[:REASON_CAP]
        self._worker.order(Given(need.group, reason))
