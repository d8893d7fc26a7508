"""A worker that waits for weights hears how that ended, whatever happened."""

import asyncio
from typing import Any, cast

import pytest

from node.device.weight_fetch import WeightFetch
from node.worker.messages import Given
from node.worker.weight_requests import need_of
from swarm.checkpoint.weight_store import WeightStore
from swarm.errors import Unreachable
from tests.node.stands import ScriptedWorker, until


class BrokenStore:
    """A store whose disk, peers or code let it down."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def ensure(self, *_: Any) -> int:
        raise self._error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(28, "No space left on device"), "No space left"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (Unreachable("No peer has them."), "No peer has them"),
        (KeyError("a bug"), "a bug"),
    ],
)
def test_a_load_ends_with_the_cause_when_weights_cannot_be_held(
    error: Exception, cause: str
) -> None:
    async def story() -> None:
        worker = ScriptedWorker()
        store = cast("WeightStore", BrokenStore(error))
        weight_fetch = WeightFetch(worker, store, lambda fraction: None)
        weight_fetch.serve(need_of("g", {"x": ((0, 1),)}))
        await until(lambda: worker.orders)
        given = worker.last(Given)
        assert given.group == "g"
        assert cause in given.reason

    asyncio.run(story())
