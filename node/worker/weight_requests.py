"""WeightRequests: how a worker asks its node for weights that its folder lacks, and waits."""

import queue
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from node.worker.messages import Given, Need
from swarm.checkpoint.byte_ranges import ByteRanges, merged
from swarm.errors import EngineError, RemoteProtocolError
from swarm.wire.messages import Message

LOOK_SECONDS = 0.1  # between looks at whether the node has changed its mind

Answer = Callable[[Message], None]


class WeightRequests:
    """The worker's side: one question at a time, from the compute thread."""

    def __init__(self, answer: Answer, heed: Callable[[], None]) -> None:
        self._answer, self._heed = answer, heed
        self._given: queue.Queue[Given] = queue.Queue()

    def given(self, order: Given) -> None:
        """Take the node's answer, in the reading thread."""
        self._given.put(order)

    def ask(self, group: str, wanted: Mapping[str, ByteRanges]) -> None:
        """Wait until the bytes are there; raises EngineError if they will not be, or need not."""
        self._answer(need_of(group, wanted))
        while True:
            self._heed()
            try:
                given = self._given.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            if given.group == group and given.reason:
                raise EngineError(given.reason)
            if given.group == group:
                return


def need_of(group: str, wanted: Mapping[str, ByteRanges]) -> Need:
    """The message that asks for ranges of files."""
    return Need(group, body=msgpack.packb(dict(wanted)))


def wanted_of(need: Need) -> dict[str, ByteRanges]:
    """The ranges by file that a message asks for; raises RemoteProtocolError."""
    try:
        found: dict[str, Any] = msgpack.unpackb(need.body)
        return {
            name: merged((int(start), int(end)) for start, end in ranges)
            for name, ranges in found.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise RemoteProtocolError("A worker asks for weights that cannot be.") from error
