"""Strangers who ask a node to join groups cannot make it read the board without end."""

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.control.board_watcher import BoardWatcher
from node.device.group_request import GroupRequest, GroupWord
from node.device.own_devices import OwnDevices
from node.node import Node
from swarm.errors import PeerRefused
from swarm.task_set import TaskSet
from swarm.testing.memory_network import MemoryWorld
from tests.node.nodes import node_of
from tests.node.stands import STRANGER, until

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
        node._devices = SimpleNamespace(require=lambda _index: Deaf())  # type: ignore[assignment]
        control: Any = SimpleNamespace(
            membership=SimpleNamespace(refresh=read),
            plan_store=SimpleNamespace(adopt_latest=read),
        )
        node._board_watcher = watcher = BoardWatcher(control, MemoryWorld().channel("me"), node)
        watcher.may_hurry = anybody  # type: ignore[method-assign]
        for _ in range(10):
            with pytest.raises(PeerRefused):
                await node._answer_group(STRANGER, REQUEST)

    asyncio.run(story())
    assert len(reads) == 2


def test_a_device_that_cannot_be_tended_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stumble() -> None:
        raise KeyError("a bug")

    async def story() -> None:
        node = node_of(MemoryWorld(), "me", tmp_path, [])
        devices = node._devices
        devices.by_index = {0: SimpleNamespace(reconcile=stumble)}  # type: ignore[dict-item]
        monkeypatch.setattr(OwnDevices, "_show_load", lambda *_: None)
        async with asyncio.timeout(5), TaskSet() as tasks:
            tasks.create("tending the devices", node._reconcile())
            await until(lambda: caplog.records)

    with caplog.at_level(logging.ERROR):
        asyncio.run(story())
    assert "tending device 0 failed" in caplog.text
    assert "a bug" in caplog.text
