"""Strangers who ask a node to join groups cannot make it read the board without end."""

import asyncio
import logging
from types import SimpleNamespace

import pytest

from node.device.group_request import GroupRequest, GroupWord
from node.node import Node, _report
from swarm.errors import PeerRefused
from tests.node.stands import STRANGER

REQUEST = GroupRequest(GroupWord.PREPARE, "g", device=0, start=0, end=1, rank=1).to_bytes()


class Deaf:
    """A device that no plan knows."""

    def expects(self, _peer: str, _request: GroupRequest) -> bool:
        return False

    async def called(self, _peer: str, _request: GroupRequest) -> bytes:
        raise PeerRefused("The plan that we accepted does not say so (yet).")


def anybody(peer: str) -> bool:
    return bool(peer)


def test_a_flood_of_group_requests_reads_the_board_once() -> None:
    reads: list[int] = []

    async def read(*_: object) -> None:
        reads.append(1)

    async def story() -> None:
        node = Node.__new__(Node)
        node._devices = {0: Deaf()}  # type: ignore[dict-item]
        node._catching_up = asyncio.Lock()
        node._caught_up_at = -1.0
        node._may_hurry = anybody  # type: ignore[method-assign]
        node._membership = SimpleNamespace(refresh=read)  # type: ignore[assignment]
        node._plan_store = SimpleNamespace(adopt_latest=read)  # type: ignore[assignment]
        for _ in range(10):
            with pytest.raises(PeerRefused):
                await node._answer_group(STRANGER, REQUEST)

    asyncio.run(story())
    assert len(reads) == 2


def test_a_device_that_cannot_be_tended_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def stumble() -> None:
        raise KeyError("a bug")

    async def story() -> None:
        task = asyncio.create_task(stumble())
        task.add_done_callback(_report)
        await asyncio.wait([task])

    with caplog.at_level(logging.ERROR):
        asyncio.run(story())
    assert "could not be tended" in caplog.text
